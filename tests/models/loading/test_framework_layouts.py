"""Checkpoints of MaxText, Megatron-core and nanoGPT, built in each framework's own layout."""

import dataclasses
import json

import numpy as np
import pytest
from tests.oracle import families

from ziggurat.checkpoint import containers
from ziggurat.core.errors import CheckpointError
from ziggurat.core.pytrees import named_leaves
from ziggurat.models import family_for_architecture
from ziggurat.models.conversion.weight_names import import_weights
from ziggurat.models.language_model import LanguageModel
from ziggurat.models.loading import foreign_weights

Arrays = dict[str, np.ndarray]
OPTIMIZER = {"opt_state.mu.count": np.zeros(1, np.float32)}


def dimensions(config):
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    width = config["hidden_size"]
    return heads, kv, config.get("head_dim") or width // heads, width


def layers_of(theirs: Arrays, name: str, count: int) -> list[np.ndarray]:
    return [theirs[f"model.layers.{i}.{name}.weight"] for i in range(count)]


def maxtext(theirs: Arrays, config, stacked: bool) -> Arrays:
    """``[d, layers, heads, channels]`` where layers are scanned, ``layers_N`` where not."""
    heads, kv, c, d = dimensions(config)
    out = {
        "token_embedder.embedding": np.pad(theirs["model.embed_tokens.weight"], ((0, 8), (0, 0))),
        "decoder.decoder_norm.scale": theirs["model.norm.weight"],
    }
    if "lm_head.weight" in theirs:
        out["decoder.logits_dense.kernel"] = np.pad(theirs["lm_head.weight"].T, ((0, 0), (0, 8)))
    table = {
        "pre_self_attention_layer_norm.scale": ("input_layernorm", lambda a: a),
        "post_self_attention_layer_norm.scale": ("post_attention_layernorm", lambda a: a),
        "self_attention.query.kernel": (
            "self_attn.q_proj",
            lambda a: a.T.reshape(d, heads, c) / np.float32(np.sqrt(c)),
        ),
        "self_attention.key.kernel": ("self_attn.k_proj", lambda a: a.T.reshape(d, kv, c)),
        "self_attention.value.kernel": ("self_attn.v_proj", lambda a: a.T.reshape(d, kv, c)),
        "self_attention.out.kernel": ("self_attn.o_proj", lambda a: a.T.reshape(heads, c, d)),
        "mlp.wi_0.kernel": ("mlp.gate_proj", lambda a: a.T),
        "mlp.wi_1.kernel": ("mlp.up_proj", lambda a: a.T),
        "mlp.wo.kernel": ("mlp.down_proj", lambda a: a.T),
    }
    count = config["num_hidden_layers"]
    for path, (name, change) in table.items():
        arrays = [change(a) for a in layers_of(theirs, name, count)]
        if stacked:
            out[f"decoder.layers.{path}"] = np.stack(arrays, axis=1)
        else:
            out |= {f"decoder.layers_{i}.{path}": a for i, a in enumerate(arrays)}
    return {f"params.params.{name}": a for name, a in out.items()} | OPTIMIZER


def megatron(theirs: Arrays, config, stacked: bool) -> Arrays:
    """Query rows of each key head, then its key, then its value; gate rows before up rows."""
    _, kv, c, _ = dimensions(config)
    count = config["num_hidden_layers"]
    out = {
        "embedding.word_embeddings.weight": theirs["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": theirs["model.norm.weight"],
    }
    if "lm_head.weight" in theirs:
        out["output_layer.weight"] = theirs["lm_head.weight"]

    def fused(i: int, kind: str) -> np.ndarray:
        parts = [theirs[f"model.layers.{i}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
        by_head = [p.reshape(kv, -1, c, *p.shape[1:]) for p in parts]
        return np.concatenate(by_head, axis=1).reshape(-1, *parts[0].shape[1:])

    plain = {
        "self_attention.linear_qkv.layer_norm_weight": "input_layernorm",
        "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm",
        "self_attention.linear_proj.weight": "self_attn.o_proj",
        "mlp.linear_fc2.weight": "mlp.down_proj",
    }
    if "model.layers.0.self_attn.q_norm.weight" in theirs:
        plain["self_attention.q_layernorm.weight"] = "self_attn.q_norm"
        plain["self_attention.k_layernorm.weight"] = "self_attn.k_norm"
    layers: dict[str, list[np.ndarray]] = {
        path: layers_of(theirs, name, count) for path, name in plain.items()
    }
    layers["self_attention.linear_qkv.weight"] = [fused(i, "weight") for i in range(count)]
    if "model.layers.0.self_attn.q_proj.bias" in theirs:
        layers["self_attention.linear_qkv.bias"] = [fused(i, "bias") for i in range(count)]
    gates, ups = (layers_of(theirs, f"mlp.{n}_proj", count) for n in ("gate", "up"))
    layers["mlp.linear_fc1.weight"] = [np.concatenate(pair) for pair in zip(gates, ups)]
    for path, arrays in layers.items():
        if stacked:
            out[f"decoder.layers.{path}"] = np.stack(arrays)
        else:
            out |= {f"decoder.layers.{i}.{path}": a for i, a in enumerate(arrays)}
    out["decoder.layers.self_attention.linear_qkv._extra_state"] = np.zeros(1, np.float32)
    return out | {"optimizer.state.exp_avg": np.zeros(2, np.float32)}


def nanogpt(theirs: Arrays, config, stacked: bool) -> Arrays:
    """Matrices ``[out, in]``, under the wrapper of torch.compile; without biases if ``stacked``
    is false, as ``bias=False`` trains."""
    names = {
        n if n.startswith("transformer.") else f"transformer.{n}": a for n, a in theirs.items()
    }
    out = {}
    for name, array in names.items():
        if name.endswith("bias") and not stacked:
            continue
        matrix = name.endswith(".weight") and ".c_" in name
        out[f"model._orig_mod.{name}"] = array.T if matrix else array
    out["model._orig_mod.lm_head.weight"] = names["transformer.wte.weight"]
    return out


LAYOUTS = {
    "MaxText": ("orbax", maxtext, ("llama/gqa-2", "llama/plain")),
    "Megatron-core": ("distcp", megatron, ("llama/gqa-2", "qwen/qwen2", "qwen/qwen3")),
    "nanoGPT": ("pt", nanogpt, ("gpt2/plain",)),
}
CASES = [(framework, case) for framework in LAYOUTS for case in LAYOUTS[framework][2]]


def directory(folder, case):
    import tokenizers

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(families.load(case).config))
    letters = {f"t{index}": index for index in range(families.VOCABULARY)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="t0"))
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"unk_token": "t0"}))
    return folder


def written(tmp_path, framework, case, stacked, change=lambda tensors: tensors):
    kind, lay_out, _ = LAYOUTS[framework]
    stored = families.load(case)
    theirs = dict(families.weights(case, stored.shapes))
    if framework == "nanoGPT" and not stacked:
        theirs = {n: np.zeros_like(a) if n.endswith("bias") else a for n, a in theirs.items()}
    source = containers.write(
        kind, change(lay_out(theirs, stored.config, stacked)), tmp_path / "source"
    )
    family = family_for_architecture(stored.config["architectures"][0])
    config = family.from_hf(stored.config)
    expected = import_weights(
        family.hf_names(config),
        families.Tensors(theirs),
        LanguageModel.build(config).abstract,
        layers=config.n_layers,
    )
    return source, named_leaves(expected)


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "apart"])
@pytest.mark.parametrize(("framework", "case"), CASES)
def test_weights_are_those_of_the_published_model(tmp_path, framework, case, stacked):
    source, expected = written(tmp_path, framework, case, stacked)
    with containers.open(source) as tensors:
        loaded, naming = foreign_weights.load(tensors, directory(tmp_path / "config", case))
    assert naming.style == framework
    found = named_leaves(loaded.params)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        # MaxText's factor on queries is taken off again, within a rounding of each number
        np.testing.assert_allclose(found[name], array, rtol=3e-7, err_msg=name)


def test_other_families_and_tensors_are_named(tmp_path):
    source, _ = written(tmp_path, "MaxText", "llama/plain", True)
    with (
        containers.open(source) as tensors,
        pytest.raises(CheckpointError, match="MaxText checkpoint: found a config of family qwen3"),
    ):
        foreign_weights.load(tensors, directory(tmp_path / "config", "qwen/qwen3"))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda t: {n: a for n, a in t.items() if "wi_1" not in n},
            "mlp.wi_1.kernel: found absent",
        ),
        (
            lambda t: t | {"params.params.decoder.layers.moe.gate": np.zeros(1, np.float32)},
            "decoder.layers.moe.gate: found a name",
        ),
    ],
)
def test_a_tensor_missing_or_left_over_is_named(tmp_path, change, line):
    source, _ = written(tmp_path, "MaxText", "llama/plain", True, change)
    with containers.open(source) as tensors, pytest.raises(CheckpointError, match=line):
        foreign_weights.load(tensors, directory(tmp_path / "config", "llama/plain"))


def test_layers_are_read_one_at_a_time(tmp_path):
    """A stacked tensor is not read whole for each of its layers."""
    source, _ = written(tmp_path, "Megatron-core", "llama/gqa-2", True)
    sizes = []
    with containers.open(source) as tensors:
        name = "decoder.layers.mlp.linear_fc2.weight"
        lazy = tensors[name]

        def spied(where):
            sizes.append(where[0].stop - where[0].start)
            return lazy.reader(where)

        tensors._tensors[name] = dataclasses.replace(lazy, reader=spied)
        foreign_weights.load(tensors, directory(tmp_path / "config", "llama/gqa-2"))
    assert set(sizes) == {1}
