"""Attention through JAX's splash kernel, interpreted: equal to the reference, on one device and on
a mesh; and what it refuses. ``tests/train/test_ahead_of_time.py`` compiles it for TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat import mesh as mesh_
from ziggurat.core.errors import ConfigError
from ziggurat.kernels.attention import AttentionMask, attention

B, T, H, K, C = 2, 256, 2, 1, 8


def inputs(heads=H, kv_heads=K):
    draw = np.random.default_rng(0)
    shapes = (B, T, heads, C), (B, T, kv_heads, C), (B, T, kv_heads, 4)
    return tuple(jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in shapes)


def packed(window=None) -> AttentionMask:
    """Two documents and padding a row; block borders lie inside the documents."""
    lengths = (100, 90, 66)
    numbers = np.repeat([1, 2, 0], lengths)[None]
    places = np.concatenate([np.arange(n) for n in lengths])[None]
    segments, positions = (jnp.asarray(np.repeat(x, B, 0), jnp.int32) for x in (numbers, places))
    return AttentionMask(positions, positions, segments, segments, aligned=True, window=window)


def differentiated(mask, **options):
    def loss(implementation, args):
        out = attention(*args, mask, scale=0.3, implementation=implementation, **options)
        return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

    def call(implementation, args):
        return jax.value_and_grad(loss, argnums=1, has_aux=True)(implementation, args)

    return call


@pytest.mark.parametrize(
    ("window", "options"),
    [(None, {}), (150, {"softcap": 2.0, "sinks": jnp.array([0.1, -0.4])})],
    ids=["causal", "window, cap and sinks"],
)
def test_splash_equals_the_reference_with_gradients(window, options):
    """Sums in another order, float32: a few units in the last place of values near one."""
    call, args = differentiated(packed(window), **options), inputs()
    expected, found = (
        jax.tree.leaves(jax.jit(call, static_argnums=0)(name, args))
        for name in ("reference", "splash")
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)


def test_on_a_mesh_each_device_runs_its_rows_and_heads():
    layout = mesh_.build(mesh_.MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    mask, args = packed(), inputs(heads=4, kv_heads=2)
    call = lambda args: attention(*args, mask, scale=0.3, implementation="splash")  # noqa: E731
    expected = attention(*args, mask, scale=0.3, implementation="reference")
    with layout.active():
        program = jax.jit(call).trace(args)
        found = program.lower().compile()(args)
    assert "shard_map" in str(program.jaxpr)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [{"causal": False}, {"aligned": False}, {"length": 200}], ids=str)
def test_splash_refuses_what_it_cannot_serve(kind):
    length = kind.pop("length", T)
    positions = jnp.tile(jnp.arange(length)[None], (B, 1))
    mask = AttentionMask(positions, positions, **({"aligned": True} | kind))
    args = (x[:, :length] for x in inputs())
    with pytest.raises(ConfigError, match=r"'splash' for \d+ tokens a row.*use 'auto'"):
        attention(*args, mask, scale=1.0, implementation="splash")


def test_rows_cut_over_devices_are_refused():
    layout = mesh_.build(mesh_.MeshConfig(fsdp=1, context=2), jax.devices()[:2])
    with layout.active(), pytest.raises(ConfigError, match="whole rows"):
        attention(*inputs(), packed(), scale=1.0, implementation="splash")


@pytest.mark.tpu_compile
@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_forward_and_backward_compile_for_every_generation(name):
    """On a mesh, as ``auto`` takes it there; with a window, a cap and sinks."""
    pytest.importorskip("libtpu")
    from ziggurat.plan import Topology

    layout = mesh_.build(mesh_.MeshConfig(fsdp=-1), Topology.parse(name).devices())
    rows = layout.ways("batch")

    def struct(axes, *shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.sharding(axes, shape))

    whole = ("batch", None, None, None)
    args = [struct(whole, rows, 256, heads, 128) for heads in (2, 1, 1)]
    ids = struct(("batch", None), rows, 256, dtype=jnp.int32)
    sinks = struct((None,), 2, dtype=jnp.float32)

    def loss(args, sinks, ids):
        who = AttentionMask(ids, ids, ids, ids, aligned=True, window=150)
        return attention(*args, who, scale=0.1, softcap=20.0, sinks=sinks).sum()

    with layout.active():
        lowered = jax.jit(jax.grad(loss, (0, 1))).lower(args, sinks, ids)
    assert lowered.as_text().count("tpu_custom_call") >= 3  # forward, dq, dkv
    assert lowered.compile().memory_analysis() is not None
