"""Llama and Mistral against stored outputs of transformers, for every switch; no torch needed.

Tolerance 1e-4 on logits of order one: both sides sum the same products in another order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.models.llama_cases import full_logits, ours, stored
from tests.oracle import llama as oracle
from tests.quick_jit import quick_jit

from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.models.weight_names import export_weights
from ziggurat.nn import GatedMlpConfig, GroupedAttentionConfig, Precision
from ziggurat.nn.rope import Llama3Scaling, YarnScaling

every_case = pytest.mark.parametrize("case", oracle.CASES)


def test_every_case_is_stored():
    assert stored().keys() == oracle.CASES.keys()
    for case, entry in stored().items():
        assert entry.logits.shape == (1, oracle.TOKENS, oracle.VOCABULARY), case
        assert entry.logits.std() > 0.5, "logits too small for a tolerance to mean anything"
    distinct = {entry.logits.tobytes() for entry in stored().values()}
    assert len(distinct) == len(oracle.CASES)


@every_case
def test_logits_equal_transformers(case):
    np.testing.assert_allclose(full_logits(case), stored()[case].logits, atol=1e-4, rtol=0)


@every_case
def test_prefill_and_decode_equal_the_full_forward(case):
    model, params = ours(case).model, ours(case).params
    tokens = jnp.asarray(oracle.tokens(case))
    positions = jnp.arange(oracle.TOKENS)[None]

    def forward(params, tokens, positions, cache):
        hidden, cache = model.hidden(params, tokens, positions, cache)
        return model.project(params, hidden), cache

    forward, cache, parts = quick_jit(forward), model.cache(1, 32), []
    for start, stop in [(0, 13), *((i, i + 1) for i in range(13, oracle.TOKENS))]:
        part = slice(start, stop)
        logits, cache = forward(params, tokens[:, part], positions[:, part], cache)
        parts.append(np.asarray(logits))
    np.testing.assert_allclose(np.concatenate(parts, 1), full_logits(case), atol=1e-4, rtol=0)
    assert cache.lengths.tolist() == [oracle.TOKENS]


@every_case
def test_export_is_the_inverse_of_import(case):
    a = ours(case)
    written = dict(export_weights(a.family.hf_names(a.config), a.params, layers=a.config.n_layers))
    assert written.keys() == a.theirs.keys()
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor, a.theirs[name], err_msg=name)


@every_case
def test_config_survives_export(case):
    a = ours(case)
    assert a.family.from_hf(a.family.to_hf(a.config)).decoder() == a.config.decoder()


@every_case
def test_parameter_counts(case):
    a = ours(case)
    built = sum(leaf.size for leaf in jax.tree.leaves(a.params))
    assert a.model.parameter_count == built == stored()[case].parameters
    matrices = [n for n in a.theirs if a.theirs[n].ndim == 2 and "embed_tokens" not in n]
    head = 0 if "lm_head.weight" in matrices else a.theirs["model.embed_tokens.weight"].size
    assert a.model.matmul_parameter_count == head + sum(a.theirs[n].size for n in matrices)


@every_case
def test_the_older_form_of_config_json_means_the_same(case):
    """transformers 4 wrote ``rope_theta`` and ``rope_scaling`` where 5 has ``rope_parameters``."""
    values = dict(stored()[case].config)
    scaling = dict(values.pop("rope_parameters"))
    values["rope_theta"] = scaling.pop("rope_theta")
    kind = scaling.pop("rope_type")
    for key in ("rope_type", "type"):
        values["rope_scaling"] = None if kind == "default" else scaling | {key: kind}
        assert ours(case).family.from_hf(values) == ours(case).config


def test_published_configs_read_as_meant():
    llama = ours("llama-3.2-like").config
    assert llama.rope.scaling == Llama3Scaling(factor=32.0, original_length=16)
    assert llama.rope.theta == 5e5
    assert (llama.tie_embeddings, llama.window, llama.max_sequence_length) == (True, None, 131072)
    assert ours("mistral").config.window == 7
    assert ours("rope-yarn-mscale").config.rope.scaling == YarnScaling(
        factor=4.0, original_length=16, mscale=0.7, mscale_all_dim=1.0, truncate=False
    )


def test_decoding_in_bfloat16_stays_near_float32():
    """Compute in bfloat16 keeps 8 bits; three layers lose a few of them."""
    case = "llama-3.2-like"
    model = LanguageModel.build(ours(case).config, Precision(compute="bfloat16"))
    logits = quick_jit(model.logits)(ours(case).params, jnp.asarray(oracle.tokens(case)))
    assert logits.dtype == jnp.float32
    expected = stored()[case].logits
    error = np.sqrt(np.mean((np.asarray(logits) - expected) ** 2)) / expected.std()
    assert 1e-4 < error < 0.05


def test_head_dim_and_width_default_from_the_rest():
    decoder = LlamaConfig(vocab_size=8, d_model=96, n_layers=1, n_heads=4).decoder()
    attention, mlp = decoder.layers[0].block.attention, decoder.layers[0].block.mlp
    assert attention == GroupedAttentionConfig(heads=4, kv_heads=4, head_dim=24)
    assert mlp == GatedMlpConfig(hidden=256, activation="silu")
