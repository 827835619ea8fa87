"""What is particular to Llama and Mistral; ``test_families.py`` has what holds for every family."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.models.family_cases import ours
from tests.oracle import families

from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.nn import GatedMlpConfig, GroupedAttentionConfig, Precision
from ziggurat.nn.rope import Llama3Scaling, YarnScaling

every_case = pytest.mark.parametrize(
    "case", [case for case in families.CASES if case.startswith("llama/")]
)


@every_case
def test_parameters_that_multiply_every_token(case):
    a = ours(case)
    matrices = [n for n in a.theirs if a.theirs[n].ndim == 2 and "embed_tokens" not in n]
    head = 0 if "lm_head.weight" in matrices else a.theirs["model.embed_tokens.weight"].size
    assert a.model.matmul_parameter_count == head + sum(a.theirs[n].size for n in matrices)


@every_case
def test_the_older_form_of_config_json_means_the_same(case):
    """transformers 4 wrote ``rope_theta`` and ``rope_scaling`` where 5 has ``rope_parameters``."""
    values = dict(families.load(case).config)
    scaling = dict(values.pop("rope_parameters"))
    values["rope_theta"] = scaling.pop("rope_theta")
    kind = scaling.pop("rope_type")
    for key in ("rope_type", "type"):
        values["rope_scaling"] = None if kind == "default" else scaling | {key: kind}
        assert ours(case).family.from_hf(values) == ours(case).config


def test_published_configs_read_as_meant():
    llama = ours("llama/llama-3.2-like").config
    assert llama.rope.scaling == Llama3Scaling(factor=32.0, original_length=16)
    assert llama.rope.theta == 5e5
    assert (llama.tie_embeddings, llama.window, llama.max_sequence_length) == (True, None, 131072)
    assert ours("llama/mistral").config.window == 7
    assert ours("llama/rope-yarn-mscale").config.rope.scaling == YarnScaling(
        factor=4.0, original_length=16, mscale=0.7, mscale_all_dim=1.0, truncate=False
    )


def test_decoding_in_bfloat16_stays_near_float32():
    """Compute in bfloat16 keeps 8 bits; three layers lose a few of them."""
    case = "llama/llama-3.2-like"
    model = LanguageModel.build(ours(case).config, Precision(compute="bfloat16"))
    logits = jax.jit(model.logits)(ours(case).params, jnp.asarray(families.tokens(case)))
    assert logits.dtype == jnp.float32
    expected = families.load(case).logits
    error = np.sqrt(np.mean((np.asarray(logits) - expected) ** 2)) / expected.std()
    assert 1e-4 < error < 0.05


def test_head_dim_and_width_default_from_the_rest():
    decoder = LlamaConfig(vocab_size=8, d_model=96, n_layers=1, n_heads=4).decoder()
    attention, mlp = decoder.layers[0].block.mixer, decoder.layers[0].block.mlp
    assert attention == GroupedAttentionConfig(heads=4, kv_heads=4, head_dim=24)
    assert mlp == GatedMlpConfig(hidden=256, activation="silu")
