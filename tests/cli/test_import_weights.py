"""``import weights`` and ``export weights``: other programs' checkpoints to a model and back."""

import json

import jax
import numpy as np
import pytest
from tests.oracle import families, torch_files

from ziggurat.checkpoint import containers, read_arrays, read_records
from ziggurat.cli.main import main
from ziggurat.core.errors import CheckpointError
from ziggurat.core.pytrees import named_leaves
from ziggurat.models import FAMILIES, LanguageModel, family_for_architecture
from ziggurat.models.loading import foreign_weights, pretrained
from ziggurat.nn.rope import frequencies

CASE = "llama/gqa-2"
STEP = "step_00000000"


@pytest.fixture(scope="module")
def theirs() -> dict[str, np.ndarray]:
    return dict(families.weights(CASE, families.load(CASE).shapes))


@pytest.fixture(scope="module")
def directory(tmp_path_factory, theirs):
    """A Hugging Face directory of the tiny Llama."""
    import tokenizers

    folder = tmp_path_factory.mktemp("hf") / "tiny"
    containers.write("safetensors", theirs, folder)
    (folder / "config.json").write_text(json.dumps(families.load(CASE).config))
    letters = {f"t{index}": index for index in range(families.VOCABULARY)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="t0"))
    backend.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "t1", "eos_token": "t2", "unk_token": "t0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder


@pytest.fixture(scope="module")
def expected(directory, tmp_path_factory) -> dict[str, np.ndarray]:
    """What ``import hf`` makes of it."""
    out = tmp_path_factory.mktemp("out") / "hf"
    assert main(["import", "hf", str(directory), "--output", str(out), "--verify", "never"]) == 0
    return named_leaves(read_arrays(out / STEP, "params"))


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the rotary order of Meta's code: channel pairs side by side."""
    half = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return half.swapaxes(1, 2).reshape(weight.shape)


def torchtitan(theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = {
        "model.embed_tokens": "tok_embeddings",
        "model.norm": "norm",
        "lm_head": "output",
        "model.layers": "layers",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attention.wq",
        "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
    }
    out = {}
    for name, array in theirs.items():
        for old, new in names.items():
            name = name.replace(old, new)
        heads = {"wq": 6, "wk": 2}.get(name.split(".")[-2])
        out[name] = interleaved(array, heads) if heads else array
    config = FAMILIES["llama"].from_hf(families.load(CASE).config)
    omega, _ = frequencies(config.rope, config.channels_per_head)
    return out | {"freqs_cis": np.exp(1j * np.outer(np.arange(8), omega)).astype(np.complex64)}


def under(prefix: str, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {prefix + name: array for name, array in tensors.items()}


def compiled(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.replace(".mlp.", "._orig_mod.mlp."): a for name, a in tensors.items()}


MOMENTS = {"optimizer.state.0.exp_avg": np.zeros(3, np.float32)}
LAYOUTS = {
    "plain": ("pt", lambda t: t, "names of Hugging Face\n"),
    "trainer": (
        "pt",
        lambda t: under("model._orig_mod.", t) | MOMENTS,
        "under 'model.', 1 other tensors left out",
    ),
    "ddp, compiled layers": ("safetensors", lambda t: under("module.", compiled(t)), "'module.'"),
    "fsdp": ("distcp", lambda t: under("app.model._fsdp_wrapped_module.", t), "'app.model.'"),
    "no optimizer prefix": ("distcp", lambda t: t | MOMENTS, "1 other tensors left out"),
    "orbax": ("orbax", lambda t: under("params.", t), "orbax: names of Hugging Face under"),
    "torchtitan": ("distcp", lambda t: under("model.", torchtitan(t)) | MOMENTS, "TorchTitan"),
    "meta": ("pt", torchtitan, "names of TorchTitan"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_those_of_import_hf(tmp_path, directory, theirs, expected, capsys, layout):
    kind, change, said = LAYOUTS[layout]
    source = containers.write(kind, change(theirs), tmp_path / "source")
    out = tmp_path / "out"
    config = directory / "config.json" if kind == "pt" else directory
    arguments = ["import", "weights", str(source), "--config", str(config), "--output", str(out)]
    assert main(arguments) == 0
    assert said in capsys.readouterr().out
    found = named_leaves(read_arrays(out / STEP, "params"))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes(), name
    assert read_records(out / STEP)["container"] == kind


def test_logits_are_those_of_import_hf(tmp_path, directory, theirs):
    source = containers.write("distcp", under("model.", torchtitan(theirs)), tmp_path / "dcp")
    with containers.open(source) as tensors:
        loaded, naming = foreign_weights.load(tensors, directory)
    assert (naming.style, naming.prefix) == ("TorchTitan", "model.")
    logits = [
        np.asarray(jax.jit(model.model.logits)(model.params, families.tokens(CASE)))
        for model in (loaded, pretrained.load(directory))
    ]
    assert logits[0].tobytes() == logits[1].tobytes()
    np.testing.assert_allclose(logits[0], families.load(CASE).logits, atol=1e-4)


def test_bfloat16_weights(tmp_path, directory, theirs):
    import ml_dtypes

    halves = {name: array.astype(ml_dtypes.bfloat16) for name, array in theirs.items()}
    with containers.open(containers.write("pt", halves, tmp_path / "x.pt")) as tensors:
        loaded, _ = foreign_weights.load(tensors, directory)
    table = np.asarray(loaded.params["embedding"]["table"])
    np.testing.assert_array_equal(table, halves["model.embed_tokens.weight"].astype(np.float32))


def test_an_explicit_prefix(tmp_path, directory, theirs, expected, capsys):
    both = under("model.", theirs) | under("ema.", {n: a + 1 for n, a in theirs.items()})
    source = containers.write("pt", both, tmp_path / "two.pt")
    arguments = ["import", "weights", str(source), "--config", str(directory), "--output"]
    assert main([*arguments, str(tmp_path / "a")]) == 2
    assert "the whole model under ema. and model." in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "b"), "--prefix-strip", "model"]) == 0
    name = "embedding.table"
    found = named_leaves(read_arrays(tmp_path / "b" / STEP, "params"))
    assert found[name].tobytes() == expected[name].tobytes()
    assert main([*arguments, str(tmp_path / "c"), "--prefix-strip", "ema."]) == 0
    found = named_leaves(read_arrays(tmp_path / "c" / STEP, "params"))
    np.testing.assert_array_equal(found[name], expected[name] + 1)
    assert main([*arguments, str(tmp_path / "d"), "--prefix-strip", "other."]) == 2
    assert "expected names such as other.model.embed_tokens" in capsys.readouterr().err


def test_what_is_missing_or_left_over_is_named(directory, theirs):
    family, model = pretrained.hf_model(directory)
    tables = foreign_weights.styles(family, model.config)

    def error(tensors: dict[str, np.ndarray]) -> str:
        with pytest.raises(CheckpointError) as caught:
            foreign_weights.load(families.Tensors(tensors), directory)
        return str(caught.value)

    lost = dict(theirs)
    del lost["model.layers.1.mlp.up_proj.weight"]
    assert "tensor model.layers.1.mlp.up_proj.weight: found absent" in error(under("x.", lost))
    more = theirs | {"model.layers.0.mlp.bias": np.zeros(1)}
    assert "tensor model.layers.0.mlp.bias: found a name" in error(more)
    assert "tensor h.0.attn: found a name" in error({"h.0.attn": np.zeros(2)})
    assert "tensors: found none" in error({})
    twice = theirs | {"model._orig_mod.norm.weight": theirs["model.norm.weight"]}
    assert "found also model.norm.weight" in error(twice)
    naming = foreign_weights.find_naming(theirs, tables, model.decoder.n_layers)
    assert (naming.style, naming.prefix, naming.left_out) == ("Hugging Face", "", 0)


def test_a_tied_model_saved_without_its_head(directory):
    case = "llama/tied"
    tensors = families.weights(case, families.load(case).shapes)
    values = families.load(case).config
    family = family_for_architecture(values["architectures"][0])
    model = LanguageModel.build(family.from_hf(values))
    bare = {name.removeprefix("model."): array for name, array in tensors.items()}
    tables = foreign_weights.styles(family, model.config)
    naming = foreign_weights.find_naming(bare, tables, model.decoder.n_layers)
    assert (naming.style, naming.prefix) == ("Hugging Face, without the head's wrapper", "")


@pytest.mark.parametrize("to", containers.KINDS)
def test_export_weights(tmp_path, capsys, to):
    out = tmp_path / "out"
    arguments = ["export", "weights", str(torch_files.NANOGPT), "--output", str(out), "--to", to]
    assert main([*arguments, "--select", "model.*", "best*"]) == 0
    assert f"{out}: 4 tensors" in capsys.readouterr().out
    with containers.open(out) as tensors:
        assert tensors.kind == to
        for name, array in torch_files.MODEL.items():
            assert tensors.read(f"model.{name}").tobytes() == array.tobytes()
        assert tensors.read("best_val_loss") == 2.25
    assert main(arguments) == 2
    assert "found it exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["import", "weights", "x.pt", "--output", "o"], "import weights --config: found nothing"),
        (["import", "weights", "x.pt", "--output", "o", "--config", "c", "--verify", "always"],
         "transformers cannot read this source"),
        (["import", "weights", "x.pt", "--output", "o", "--config", "c"], "x.pt: found no such"),
        (["import", "hf", ".", "--output", "o", "--item", "x"], "no config.json"),
        (["import", "gguf", "x", "--output", "o", "--item", "y"],
         "import gguf --item: found y; expected this option for weights only"),
        (["export", "weights", "x.pt", "--output", "o"], "export weights --to: found nothing"),
        (["export", "weights", "x.pt", "--output", "o", "--to", "pt", "--dtype", "bfloat16"],
         "export weights --dtype"),
        (["export", "hf", "x", "--output", "o", "--select", "a"], "export hf --select"),
        (["export", "onnx", "x", "--output", "o"],
         "found 'onnx'; expected hf, gguf, peft, diffusers or weights"),
    ],
)  # fmt: skip
def test_wrong_options(capsys, monkeypatch, tmp_path, arguments, part):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert part in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
