"""Figures of models against the built modules, arrays and traced programs."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest
from tests.oracle import families

from ziggurat.cli import main
from ziggurat.models import LanguageModel, LlamaConfig, family_for_architecture
from ziggurat.models.summary import summarise
from ziggurat.nn import Causal, Precision
from ziggurat.plan.work import operations

FIRST = [f"{family}/{next(iter(families.table(family).cases))}" for family in families.FAMILIES]


@pytest.mark.parametrize("case", [case for case in FIRST if case in families.CASES])
def test_every_family_is_counted_to_the_unit(case):
    """Parameters as transformers counts them, weights and states as arrays have them."""
    stored = families.load(case)
    config = family_for_architecture(stored.config["architectures"][0]).from_hf(stored.config)
    model = LanguageModel.build(config, Precision("bfloat16", "bfloat16"))
    found = summarise(model, context=24, sequences=3)
    held = sum(math.prod(shape) for shape in stored.shapes.values())  # buffers are parameters here
    assert found.parameters == held == sum(found.parts.values())
    assert sum(count for count, _ in found.layers) == config.n_layers
    arrays = (
        jax.eval_shape(model.init, jax.random.key(0)),
        jax.eval_shape(lambda: model.cache(3, 24).states),
    )
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arrays))
    assert found.decode.memory_bytes == held


@pytest.mark.parametrize(
    ("case", "layers"),
    [
        ("mamba2/plain", [(3, "mamba (8 heads)")]),
        ("lfm2/lfm2_moe", ["convolution, gated mlp (120)", "convolution, 2 of 6 experts of 16"]),
    ],
)
def test_recurrent_layers_in_words(case, layers):
    config = family_for_architecture(families.load(case).config["architectures"][0]).from_hf(
        families.load(case).config
    )
    found = summarise(LanguageModel.build(config), context=24, sequences=1).layers
    assert list(found[: len(layers)]) == [x if isinstance(x, tuple) else (1, x) for x in layers]


def test_flops_are_those_of_the_traced_program():
    """Without a mask all pairs are computed, so the context here stands for the mean of keys."""
    config = LlamaConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=32)
    model = LanguageModel.build(config, attention_kernel="reference")
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)

    def forward(params, tokens):
        return model.logits(params, tokens, context=Causal())

    found = operations(jax.make_jaxpr(forward)(params, tokens))
    computed = sum(one.flops * one.count for one in found if one.name == "dot_general")
    masked = summarise(model, context=8).prefill.flops_per_token
    pairs = model.attention_channels * 4
    assert 8 * (masked + pairs * (8 - 4.5)) == computed


def test_windows_bound_the_work_of_decoding():
    config = LlamaConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=2, d_ff=32)
    whole = LanguageModel.build(config)
    layers = tuple(
        dataclasses.replace(layer, rule=dataclasses.replace(layer.rule, window=4))
        for layer in whole.decoder.layers
    )
    narrow = dataclasses.replace(whole, decoder=dataclasses.replace(whole.decoder, layers=layers))
    longer, shorter = (summarise(whole, context).decode for context in (64, 4))
    assert summarise(narrow, 64).decode.flops_per_token == shorter.flops_per_token
    assert longer.flops_per_token > shorter.flops_per_token


def test_commands(tmp_path, capsys):
    stored = families.load(FIRST[FIRST.index("mixtral/plain")])
    (tmp_path / "config.json").write_text(json.dumps(stored.config))
    assert main.main(["models", "show", str(tmp_path), "--context", "16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == stored.parameters > found["active_parameters"]
    assert main.main(["models", "show", str(tmp_path / "config.json"), "--context", "16"]) == 0
    page = capsys.readouterr().out
    assert f"{stored.parameters:,} parameters" in page
    assert "experts of" in page
    assert main.main(["models", "list", "--json"]) == 0
    known = json.loads(capsys.readouterr().out)
    assert "MixtralForCausalLM" in {name for row in known for name in row["architectures"]}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("[]", "found list; expected a JSON object"),
        ("{", "expected valid JSON"),
        ('{"architectures": ["BertModel"], "model_type": "bert"}', "an encoder (bert)"),
    ],
)
def test_what_is_no_description_is_one_line(content, line, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content)
    for path in (tmp_path / "config.json", tmp_path):
        assert main.main(["models", "show", str(path)]) == 2
        error = capsys.readouterr().err
        assert line in error
        assert len(error.splitlines()) == 1
