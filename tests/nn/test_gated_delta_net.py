"""The gated delta net in a stack with attention: every context, and transformers' own layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ziggurat.core.errors import ShapeError
from ziggurat.kernels.key_values import ROUNDED, dequantized, quantized
from ziggurat.nn import (
    AttentionRule,
    BlockConfig,
    Cached,
    Causal,
    Decoder,
    DecoderConfig,
    GatedDeltaNetConfig,
    GatedMlpConfig,
    GroupedAttentionConfig,
    LayerConfig,
    NormConfig,
    Precision,
    RopeConfig,
)
from ziggurat.nn.attention_context import Bidirectional
from ziggurat.nn.layer_state import stored_as
from ziggurat.profile.flops import training_flops_per_token

NORM = NormConfig(eps=1e-5)
MLP = GatedMlpConfig(hidden=24, activation="silu")
NET = GatedDeltaNetConfig(key_heads=2, value_heads=4, key_dim=4, value_dim=6, taps=4, norm_eps=1e-5)
GROUPED = GroupedAttentionConfig(heads=4, kv_heads=2, head_dim=4)
RECURRENT, ATTENTION = (
    LayerConfig(
        block=BlockConfig(mixer=mixer, mlp=MLP, norm=NORM),
        rule=AttentionRule(0.5),
        rope=RopeConfig(theta=100.0) if mixer is GROUPED else None,
    )
    for mixer in (NET, GROUPED)
)
MIXED = DecoderConfig(
    vocab_size=40,
    d_model=16,
    layers=(RECURRENT, RECURRENT, ATTENTION) * 2,
    norm=NORM,
    tie_embeddings=True,
    init_std=0.3,
)
GRAPH, STATE = nnx.split(Decoder(MIXED, precision=Precision(), rngs=nnx.Rngs(params=0)))
TOKENS = jax.random.randint(jax.random.key(1), (2, 12), 0, 40)


@jax.jit
def run(tokens, positions, context):
    return nnx.merge(GRAPH, STATE)(tokens, positions, context)


def positions_of(tokens):
    return jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)


FULL = run(TOKENS, positions_of(TOKENS), Causal())[0]


def test_layers_of_two_kinds_are_two_stacks_with_states_of_their_own():
    assert [(type(spec).__name__, count) for spec, count in MIXED.states] == [
        ("RecurrentSpec", 4),
        ("KeyValueSpec", 2),
    ]
    assert "blocks" in STATE
    assert "delta_net_norm" in STATE["blocks"]
    assert "attention_norm" in STATE["blocks_1"]
    assert float(jnp.std(FULL)) > 0.1


def test_flops_of_recurrent_layers_are_counted():
    """Three matmuls with the state and the convolutions' taps, for each of four layers; attention
    costs by pairs. Backward takes twice the forward's."""
    matmuls = 3 * 2 * NET.value_heads * NET.key_dim * NET.value_dim
    channels = 2 * NET.key_heads * NET.key_dim + NET.value_heads * NET.value_dim
    layer = matmuls + 2 * NET.taps * channels
    recurrent = sum(each.block.mixer.cost.per_token for each in MIXED.layers)
    assert recurrent == 4 * layer
    sizes = {"layers": 1, "heads": 1, "head_dim": 8, "sequence": 16}
    plain = training_flops_per_token(1000, **sizes)
    assert training_flops_per_token(1000, **sizes, recurrent=recurrent) == plain + 3 * recurrent


def test_both_directions_are_refused():
    with pytest.raises(ShapeError, match="attention in both directions"):
        run(TOKENS, positions_of(TOKENS), Bidirectional())


@pytest.mark.parametrize("storage", ["compute", *ROUNDED])
def test_the_state_takes_what_its_spec_says(storage):
    states = [(stored_as(spec, storage), count) for spec, count in MIXED.states]
    cache = Cached.empty(states, 3, 10, jnp.bfloat16)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache.states))
    said = sum(
        3 * n * (spec.sequence_bytes(jnp.bfloat16) + 10 * spec.token_bytes(jnp.bfloat16))
        for spec, n in states
    )
    assert held == said


def test_rounded_keys_are_within_half_a_step():
    x = 3 * jax.random.normal(jax.random.key(0), (50, 16))
    stored, scale = quantized(x.at[0].set(0))
    back = dequantized(stored, scale, jnp.float32)
    assert (jnp.abs(back - x.at[0].set(0)) <= scale[:, None] / 2 + 1e-6).all()
    assert (back[0] == 0).all()
    assert (jnp.abs(stored[1:]).max(axis=-1) == 127).all(), "all of the range is used"


@pytest.mark.parametrize(("kind", "bits", "least"), [("fp8_e4m3", 3, -9), ("fp8_e5m2", 2, -16)])
def test_rounded_floats_are_within_half_a_unit(kind, bits, least):
    """Half a unit of the last bit of each channel; below the smallest normal number half a step of
    the subnormal ones. The largest channel of each vector is exact, to float32's last bits."""
    x = 3 * jax.random.normal(jax.random.key(0), (50, 16)) ** 5
    x = x.at[0].set(0)
    stored, scale = quantized(x, ROUNDED[kind])
    back = dequantized(stored, scale, jnp.float32)
    bound = jnp.maximum(jnp.abs(x) / 2 ** (bits + 1), scale[:, None] * 2.0**least / 2)
    assert jnp.isfinite(back).all()
    assert (jnp.abs(back - x) <= bound * (1 + 1e-5)).all()
    assert (jnp.abs(back - x) > 0.8 * bound)[1:].any(), "the bound is that of this type"
    np.testing.assert_allclose(jnp.abs(back).max(-1), jnp.abs(x).max(-1), rtol=1e-6)


@pytest.mark.parity
def test_equals_transformers():
    torch = pytest.importorskip("torch")
    from transformers.models.qwen3_5 import Qwen3_5TextConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

    c = dataclasses.replace(NET, norm_eps=1e-6)
    config = Qwen3_5TextConfig(
        hidden_size=16,
        linear_num_key_heads=c.key_heads,
        linear_num_value_heads=c.value_heads,
        linear_key_head_dim=c.key_dim,
        linear_value_head_dim=c.value_dim,
        linear_conv_kernel_dim=c.taps,
        layer_types=["linear_attention"],
        num_hidden_layers=1,
    )
    torch.manual_seed(0)
    theirs = Qwen3_5GatedDeltaNet(config, 0).float()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.5)
    w = {k: v.detach().numpy() for k, v in theirs.named_parameters()}
    module = c.build(16, 0.3, Precision(), nnx.Rngs(params=0))
    keys = c.key_heads * c.key_dim
    cuts = [keys, 2 * keys]
    for name, part in zip(("query", "key", "value"), np.split(w["in_proj_qkv.weight"], cuts)):
        getattr(module, name).kernel[...] = part.T
    for name, part in zip(("query", "key", "value"), np.split(w["conv1d.weight"][:, 0], cuts)):
        getattr(module, f"{name}_convolution").weight[...] = part.T
    for name, there in (("gate", "z"), ("decay", "a"), ("rate", "b")):
        getattr(module, name).kernel[...] = w[f"in_proj_{there}.weight"].T
    module.out.kernel[...] = w["out_proj.weight"].T
    module.log_decay[...], module.decay_bias[...] = w["A_log"], w["dt_bias"]
    module.out_norm.scale[...] = w["norm.weight"]
    x = np.random.default_rng(0).normal(size=(2, 70, 16)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    out, _ = module(jnp.asarray(x), jnp.zeros((2, 70), int), None, AttentionRule(1.0), Causal(), ())
    np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())
