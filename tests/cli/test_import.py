"""``ziggurat import``: a conversion is proven or refused, and keeps the types of its source."""

import json
import shutil

import jax
import numpy as np
import pytest

from ziggurat.checkpoint import read_arrays
from ziggurat.cli.main import main
from ziggurat.core.pytrees import named_leaves
from ziggurat.data.tokenizers import byte_level
from ziggurat.formats import SafetensorsDirectory, write_sharded
from ziggurat.models import BertConfig, EncoderModel, LanguageModel, LlamaConfig
from ziggurat.models.conversion.sentence_layout import SentenceConfig
from ziggurat.models.conversion.weight_names import StoredWeight
from ziggurat.models.loading import pretrained, pretrained_encoder, proof, step_files

CONFIG = LlamaConfig(
    vocab_size=257, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, max_sequence_length=64,
    tie_embeddings=False,
)  # fmt: skip
GENERATION = {
    "do_sample": True,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
    "repetition_penalty": 1.05,
    "bos_token_id": 1,
    "eos_token_id": [256, 7],
    "pad_token_id": 3,
}


def drawn(abstract):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), abstract
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A directory as its publisher has it: float32, with generation settings and a pad id."""
    model = LanguageModel.build(CONFIG)
    directory = tmp_path_factory.mktemp("published") / "hf"
    made = pretrained.Pretrained(model, drawn(model.abstract), byte_level(), "tiny", "drawn")
    pretrained.export_hf(made, directory)
    values = json.loads((directory / "config.json").read_text())
    values |= {"bos_token_id": 1, "eos_token_id": 256, "pad_token_id": 3}
    (directory / "config.json").write_text(json.dumps(values))
    (directory / "generation_config.json").write_text(json.dumps(GENERATION))
    return directory


@pytest.fixture(scope="module")
def typed(published, tmp_path_factory):
    """The same in another type; norms stay float32 in ``mixed``."""
    made = {"float32": published}

    def of(dtype):
        if dtype not in made:
            made[dtype] = tmp_path_factory.mktemp(dtype) / "hf"
            shutil.copytree(published, made[dtype])
            files = SafetensorsDirectory(published)
            narrow = "bfloat16" if dtype == "mixed" else dtype
            tensors = {
                name: np.array(files.read(name)).astype(
                    "float32" if dtype == "mixed" and "norm" in name else narrow
                )
                for name in files
            }
            write_sharded(made[dtype], tensors.items())
            values = json.loads((published / "config.json").read_text())
            values |= {"dtype": narrow, "torch_dtype": narrow}
            (made[dtype] / "config.json").write_text(json.dumps(values))
        return made[dtype]

    return of


def types_of(output):
    step = step_files.step_directory(output)
    leaves = named_leaves(read_arrays(step, "params"))
    return {name: str(leaf.dtype) for name, leaf in leaves.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "mixed"])
def test_weights_keep_the_type_they_are_stored_in(dtype, typed, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["import", "hf", str(typed(dtype)), "--output", str(output), "--verify=never"]) == 0
    assert "not compared with transformers: --verify never" in capsys.readouterr().out
    found = types_of(output)
    narrow = "bfloat16" if dtype == "mixed" else dtype
    for name, kind in found.items():
        assert kind == ("float32" if dtype == "mixed" and "norm" in name else narrow), name
    values = SafetensorsDirectory(typed(dtype))
    step = step_files.step_directory(output)
    head = named_leaves(read_arrays(step, "params"))["unembedding"]
    np.testing.assert_array_equal(head, values.read("lm_head.weight"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_type_that_is_asked_for(dtype, typed, tmp_path):
    output = tmp_path / "out"
    options = ["--output", str(output), "--verify=never", f"--dtype={dtype}"]
    assert main(["import", "hf", str(typed("mixed")), *options]) == 0
    assert set(types_of(output).values()) == {dtype}


def test_other_programs_weights_keep_their_type_too(typed, tmp_path):
    source, output = typed("bfloat16"), tmp_path / "out"
    options = ["--config", str(source), "--output", str(output)]
    assert main(["import", "weights", str(source / "model.safetensors"), *options]) == 0
    assert set(types_of(output).values()) == {"bfloat16"}


def test_an_export_keeps_types_and_settings(typed, tmp_path):
    """Import and export give back types, ids and generation settings, whatever they are."""
    for dtype in ("bfloat16", "mixed"):
        source, model, back = typed(dtype), tmp_path / dtype, tmp_path / f"{dtype}-hf"
        assert main(["import", "hf", str(source), "--output", str(model), "--verify=never"]) == 0
        assert main(["export", "hf", str(model), "--output", str(back)]) == 0
        before, after = SafetensorsDirectory(source), SafetensorsDirectory(back)
        assert set(before) == set(after)
        for name in before:
            assert after.dtype_of(name) == before.dtype_of(name), name
            np.testing.assert_array_equal(after.read(name), before.read(name))
        assert json.loads((back / "generation_config.json").read_text()) == GENERATION
        values = json.loads((back / "config.json").read_text())
        wanted = {"dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 256, "pad_token_id": 3}
        assert {key: values[key] for key in wanted} == wanted


def test_without_transformers_a_line_says_that_nothing_was_compared(
    published, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(proof, "available", lambda: False)
    asked = ["import", "hf", str(published), "--output", str(tmp_path / "out")]
    assert main(asked) == 0
    assert "not compared with transformers: transformers or torch is" in capsys.readouterr().out
    assert main([*asked, "--verify=always"]) == 2


@pytest.mark.parametrize(
    ("record", "good"),
    [
        ({"max_logit_difference": 9e-5, "kl_divergence": 1e-9, "tolerance": 1e-4}, True),
        ({"max_logit_difference": 1.1e-4, "kl_divergence": 1e-9, "tolerance": 1e-4}, False),
        ({"max_logit_difference": float("nan"), "kl_divergence": 0.0, "tolerance": 1e-4}, False),
        ({"max_logit_difference": float("inf"), "kl_divergence": 0.0, "tolerance": 1e-4}, False),
        ({"max_logit_difference": 1e-5, "kl_divergence": 0.1, "tolerance": 1e-4}, False),
        ({"max_logit_difference": 1e-5, "kl_divergence": float("nan"), "tolerance": 1e-4}, False),
        ({"max_state_difference": 9e-5, "tolerance": 1e-4}, True),
        ({"max_state_difference": 2e-4, "tolerance": 1e-4}, False),
        ({"max_state_difference": float("nan"), "tolerance": 1e-4}, False),
    ],
    ids=str,
)
def test_a_difference_beyond_the_tolerance_is_an_error(record, good, tmp_path):
    record = {"tokens": 64, "transformers": "5", **record}
    if good:
        proof.require(record, tmp_path)
    else:
        with pytest.raises(proof.ProofError, match="differ from transformers"):
            proof.require(record, tmp_path)


def spoiled(params, leaf):
    """Parameters wrong in one weight by one per cent, as after a wrong conversion."""
    params = jax.tree.map(lambda array: array, params)
    *path, last = leaf.split(".")
    node = params
    for part in path:
        node = node[part]
    node[last] = 1.01 * node[last]
    return params


def spoil(monkeypatch, leaf):
    """Reading from files goes wrong in one weight by one per cent."""
    read = StoredWeight.read

    def wrong(weight, index=()):
        found = read(weight, index)
        return 1.01 * found if weight.name.ours == leaf else found

    monkeypatch.setattr(StoredWeight, "read", wrong)


@pytest.mark.parity
@pytest.mark.parametrize("options", [[], ["--dtype=bfloat16"], ["--dtype=float32"]])
@pytest.mark.parametrize("dtype", ["float32", "mixed"])
def test_the_proof_is_of_the_weights_that_are_written(dtype, options, typed, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["import", "hf", str(typed(dtype)), "--output", str(output), *options]) == 0
    assert "largest logit difference from transformers" in capsys.readouterr().out
    step = step_files.step_directory(output)
    record = json.loads((step / "records.json").read_text())["proof"]
    assert record["max_logit_difference"] < record["tolerance"] / 5


@pytest.mark.parity
def test_a_wrong_conversion_writes_nothing(published, tmp_path, capsys, monkeypatch):
    spoil(monkeypatch, "blocks.mlp.up.kernel")
    output = tmp_path / "out"
    assert main(["import", "hf", str(published), "--output", str(output)]) == 2
    told = capsys.readouterr().err
    assert "logits that differ from transformers" in told
    assert "expected at most" in told
    assert not output.exists()


@pytest.fixture(scope="module")
def encoder_files(tmp_path_factory):
    model = EncoderModel.build(BertConfig(vocab_size=257, d_model=16, n_layers=2, n_heads=2))
    sentence = SentenceConfig(max_length=32, pooling="mean", normalize=True)
    made = pretrained_encoder.PretrainedEncoder(
        model, drawn(model.abstract), byte_level(), sentence, "encoder", "drawn"
    )
    directory = tmp_path_factory.mktemp("encoder") / "hf"
    pretrained_encoder.export_hf(made, directory)
    return directory


@pytest.mark.parity
def test_an_encoder_is_proven_or_refused(encoder_files, tmp_path, capsys, monkeypatch):
    assert main(["import", "hf", str(encoder_files), "--output", str(tmp_path / "good")]) == 0
    assert "largest difference of states" in capsys.readouterr().out
    read = pretrained_encoder.hf_weights
    monkeypatch.setattr(
        pretrained_encoder,
        "hf_weights",
        lambda *args: spoiled(read(*args), "blocks.mlp.up.kernel"),
    )
    assert main(["import", "hf", str(encoder_files), "--output", str(tmp_path / "bad")]) == 2
    assert "states that differ from transformers" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


@pytest.mark.parity
def test_what_transformers_cannot_read_is_not_compared_and_says_so(
    published, tmp_path, capsys, monkeypatch
):
    import transformers

    def fails(*args, **options):
        raise ValueError("a type of model\nthat is not known")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fails)
    asked = ["import", "hf", str(published), "--output", str(tmp_path / "out")]
    assert main(asked) == 0
    assert "ValueError: a type of model that is not known" in capsys.readouterr().out
    assert main([*asked[:-1], str(tmp_path / "always"), "--verify=always"]) == 2
    assert not (tmp_path / "always").exists()


@pytest.mark.parity
def test_transformers_reads_the_export_as_it_read_the_source(typed, tmp_path):
    """Types, ids and generation settings, by transformers' own classes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    source, model, back = typed("bfloat16"), tmp_path / "model", tmp_path / "hf"
    assert main(["import", "hf", str(source), "--output", str(model), "--verify=never"]) == 0
    assert main(["export", "hf", str(model), "--output", str(back)]) == 0
    first, second = (GenerationConfig.from_pretrained(path).to_dict() for path in (source, back))
    assert first == second
    first, second = (AutoConfig.from_pretrained(path) for path in (source, back))
    for key in ("bos_token_id", "eos_token_id", "pad_token_id", "dtype"):
        assert getattr(first, key) == getattr(second, key), key
    first, second = (AutoModelForCausalLM.from_pretrained(path) for path in (source, back))
    assert second.dtype == torch.bfloat16
    for (name, a), (_, b) in zip(
        first.state_dict().items(), second.state_dict().items(), strict=True
    ):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), name
