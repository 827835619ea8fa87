"""Attention by the C++ kernel: equal to the reference with gradients; where it does not stand."""

import functools
import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from tests.kernels.cpu_library import require_library

from ziggurat import mesh as mesh_
from ziggurat.core.errors import ConfigError
from ziggurat.kernels.attention import AttentionMask, attention
from ziggurat.kernels.attention import cpu as kernel

TARGET = "@ziggurat_attention("


@pytest.fixture(autouse=True, scope="module")
def _library():
    require_library()


def inputs(shape, seed=0) -> tuple[jax.Array, ...]:
    b, t, s, h, k, c, z = shape
    draw = np.random.default_rng(seed)
    shapes = (b, t, h, c), (b, s, k, c), (b, s, k, z)
    return tuple(jnp.asarray(draw.normal(size=one), jnp.float32) for one in shapes)


def mask(shape, kind: str) -> AttentionMask:
    """Queries are the last ``t`` of ``s`` tokens; documents of uneven length, other ones in each
    row, and padding at the end."""
    b, t, s = shape[:3]
    places = np.tile(np.arange(s), (b, 1))
    numbers = None
    if "packed" in kind:
        numbers = np.zeros((b, s), int)
        for row in range(b):
            ends = [0, s // 5 + row, s // 2, s - s // 7]
            for document, (start, stop) in enumerate(itertools.pairwise(ends), 1):
                numbers[row, start:stop] = document
                places[row, start:stop] = np.arange(stop - start)
            places[row, ends[-1] :] = np.arange(s - ends[-1])
    parts = [places[:, s - t :], places]
    if numbers is not None:
        parts += [numbers[:, s - t :], numbers]
    window = 37 if "window" in kind else None
    arrays = [jnp.asarray(part, jnp.int32) for part in parts]
    return AttentionMask(*arrays, causal="both ways" not in kind, aligned=t == s, window=window)


CASES = [  # b, t, s, h, k, c and z; mask; soft cap; sinks
    ((1, 1, 1, 1, 1, 3, 2), "causal", None, False),
    ((2, 130, 130, 2, 2, 48, 48), "causal", None, False),
    ((2, 200, 200, 4, 2, 20, 7), "packed", None, False),
    ((1, 260, 260, 6, 1, 64, 64), "packed window", 3.0, True),
    ((2, 17, 300, 2, 1, 33, 80), "causal window", None, True),
    ((2, 65, 49, 2, 2, 16, 16), "both ways packed", 2.0, False),
    ((1, 70, 410, 3, 3, 8, 24), "packed", None, False),
]


@pytest.mark.parametrize(("shape", "kind", "softcap", "sinks"), CASES, ids=str)
def test_equals_the_reference_with_gradients(shape, kind, softcap, sinks):
    """Sums in another order and an own exponential, float32: errors of some 1e-6 of values near
    one, in gradients times the square root of the number of terms."""
    args = inputs(shape)
    if shape[1] > shape[2]:  # keys are a prefix of the queries' row
        longer = (*shape[:2], shape[1], *shape[3:])
        whole = mask(longer, kind)
        cut = shape[2]
        who = AttentionMask(
            whole.query_positions,
            whole.key_positions[:, :cut],
            whole.query_segments,
            whole.key_segments[:, :cut],
            causal=whole.causal,
        )
    else:
        who = mask(shape, kind)
    sunk = (jnp.linspace(-1, 2, shape[3]),) if sinks else ()

    def loss(args, sunk, implementation):
        out = attention(
            *args,
            who,
            scale=shape[5] ** -0.5,
            softcap=softcap,
            sinks=sunk[0] if sunk else None,
            implementation=implementation,
        )
        seen = who.dense().any(-1)[..., None, None]  # what sees nothing is not defined
        return jnp.where(seen, out * jnp.cos(jnp.arange(out.size)).reshape(out.shape), 0).sum(), out

    @jax.jit
    def both(args, sunk):
        found = []
        for name in ("reference", "cpu"):
            gradient = jax.value_and_grad(
                functools.partial(loss, implementation=name), (0, 1), True
            )
            (_, out), gradients = gradient(args, sunk)
            out = jnp.where(who.dense().any(-1)[..., None, None], out, 0)
            found.append([out, *jax.tree.leaves(gradients)])
        return found

    expected, found = both(args, sunk)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-5)


def test_a_window_to_both_sides_is_left_to_another_kernel():
    positions = jnp.arange(40)[None]
    who = AttentionMask(positions, positions, causal=False, window=5)
    args = inputs((1, 40, 40, 2, 1, 4, 4))
    assert not kernel.serves(*args, who)
    assert kernel.serves(*args, AttentionMask(positions, positions, causal=False))
    found = attention(*args, who, scale=0.5)
    expected = attention(*args, who, scale=0.5, implementation="reference")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(ConfigError, match="no window in both directions"):
        attention(*args, who, scale=0.5, implementation="cpu")


def test_a_query_that_sees_nothing_gives_zero():
    positions, segments = jnp.arange(20)[None], jnp.ones((1, 20), jnp.int32)
    who = AttentionMask(positions, positions, segments.at[0, 3].set(9), segments, aligned=True)
    args = inputs((1, 20, 20, 2, 1, 4, 4))

    def total(*args):
        out = attention(*args, who, scale=1.0, implementation="cpu")
        return out.sum(), out

    gradients, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*args)
    assert not np.any(out[0, 3])
    assert np.all(out[0, 4] != 0)
    assert not np.any(gradients[0][0, 3])
    assert all(np.isfinite(x).all() for x in gradients)


def test_a_nan_is_not_lost():
    query, key, value = inputs((1, 64, 64, 1, 1, 8, 8))
    positions = jnp.arange(64)[None]
    who = AttentionMask(positions, positions, aligned=True)
    out = attention(query, key.at[0, 9].set(jnp.nan), value, who, scale=1.0, implementation="cpu")
    assert np.isnan(out[0, 9:]).all()
    assert np.isfinite(out[0, :9]).all()


SHAPE = (2, 96, 96, 4, 2, 16, 16)


def differentiated(args, implementation="cpu", shape=SHAPE):
    def total(*args):
        out = attention(*args, mask(shape, "packed"), scale=0.3, implementation=implementation)
        return (out * out).sum()

    return jax.value_and_grad(total, (0, 1, 2))(*args)


def test_threads_get_the_same_bits_as_one_alone():
    """Several programs at once: one has the pool's threads, the others run by themselves."""
    program, args = jax.jit(differentiated), inputs(SHAPE)
    expected = [np.asarray(x) for x in jax.tree.leaves(program(args))]
    wrong = []

    def run():
        for _ in range(20):
            found = jax.tree.leaves(program(args))
            wrong.extend(x for x, y in zip(found, expected) if not np.array_equal(x, y))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_vmap_scan_and_remat():
    stacked = tuple(jnp.stack([x, x[::-1] * 0.5]) for x in inputs(SHAPE))

    @jax.jit
    def every(stacked):
        plain = jax.vmap(functools.partial(differentiated, implementation="reference"))(stacked)
        mapped = jax.vmap(differentiated)(stacked)
        scanned = jax.lax.scan(lambda _, x: (None, differentiated(x)), None, stacked)[1]
        again = jax.lax.map(jax.checkpoint(differentiated), stacked)
        return plain, mapped, scanned, again

    expected, *found = (jax.tree.leaves(x) for x in every(stacked))
    for leaves in found:
        for one, other in zip(leaves, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5, rtol=2e-5)


def test_second_derivatives_go_through_the_plain_form():
    args = inputs((1, 20, 20, 2, 1, 4, 4))

    def curvature(query, implementation):
        def total(query):
            out = attention(
                query,
                *args[1:],
                mask((1, 20, 20), "causal"),
                scale=0.5,
                implementation=implementation,
            )
            return (out**3).sum()

        return jax.jvp(jax.grad(total), (query,), (jnp.ones_like(query),))[1]

    found, expected = (
        jax.jit(functools.partial(curvature, implementation=name))(args[0])
        for name in ("cpu", "reference")
    )
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_on_a_mesh_each_device_runs_its_rows_and_heads():
    layout = mesh_.build(mesh_.MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    args = inputs(SHAPE)
    expected = jax.tree.leaves(differentiated(args, "reference"))
    with layout.active():
        lowered = jax.jit(differentiated).lower(args)
        found = jax.tree.leaves(lowered.compile()(args))
    assert TARGET in lowered.as_text()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=2e-5)


def test_auto_takes_it_for_float32_on_cpu_and_nothing_else(monkeypatch):
    def program(*args):
        return attention(*args, mask(SHAPE, "packed"), scale=0.3)

    args = inputs(SHAPE)
    assert TARGET in jax.jit(program).lower(*args).as_text()
    half = tuple(x.astype(jnp.bfloat16) for x in args)
    assert TARGET not in jax.jit(program).lower(*half).as_text()
    one_token = (args[0][:, :1], *args[1:])
    single = functools.partial(attention, scale=0.3)
    who = mask((2, 1, 96), "causal")
    assert TARGET not in jax.jit(lambda *a: single(*a, who)).lower(*one_token).as_text()
    layout = mesh_.build(mesh_.MeshConfig(fsdp=1, context=2), jax.devices()[:2])
    with layout.active():  # rows are cut over devices
        assert TARGET not in jax.jit(lambda *a: program(*a)).lower(*args).as_text()
    monkeypatch.setattr(kernel, "usable", lambda *_: False)  # as where nothing is built
    assert TARGET not in jax.jit(lambda *a: program(*a)).lower(*args).as_text()


def test_exported_and_foreign_programs_have_the_plain_form():
    """A bundle runs where there may be no library; a program for TPU has no use for ours."""

    def program(*args):
        return attention(*args, mask(SHAPE, "packed"), scale=0.3, implementation="cpu")

    args = inputs(SHAPE)
    expected = attention(*args, mask(SHAPE, "packed"), scale=0.3, implementation="reference")
    for platforms in (("cpu",), ("cpu", "cuda", "tpu")):
        exported = export.export(jax.jit(program), platforms=platforms)(*args)
        assert TARGET not in exported.mlir_module()
        np.testing.assert_allclose(exported.call(*args), expected, atol=1e-5, rtol=1e-5)


def test_a_program_that_xla_partitions_has_the_plain_form():
    """Sharded arguments without a layout: nothing says so before the program is lowered."""
    spec = jax.sharding.PartitionSpec("x")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    args = inputs(SHAPE)
    placed = jax.device_put(args, jax.sharding.NamedSharding(mesh, spec))
    lowered = jax.jit(differentiated).lower(placed)
    assert TARGET not in lowered.as_text()
    found, expected = lowered.compile()(placed), differentiated(args, "reference")
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=2e-5)


def test_refuses_by_name_what_it_cannot_serve():
    half = tuple(x.astype(jnp.bfloat16) for x in inputs(SHAPE))
    with pytest.raises(ConfigError, match=r"'cpu' for bfloat16; expected float32 .*use 'auto'"):
        attention(*half, mask(SHAPE, "packed"), scale=0.3, implementation="cpu")
