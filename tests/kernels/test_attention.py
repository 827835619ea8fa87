"""Attention: the grouped form equals the reference over a table of shapes, masks and types."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core.errors import ConfigError
from ziggurat.kernels.attention import IMPLEMENTATIONS, AttentionMask, attention, reference

SHAPES = [  # b, t, s, h, k, c and z, where values have other channels than keys
    (1, 1, 1, 1, 1, 2),
    (2, 7, 7, 4, 4, 8),
    (2, 7, 7, 6, 2, 4),
    (1, 5, 5, 8, 1, 16),
    (3, 1, 9, 4, 2, 8),
    (2, 4, 11, 6, 3, 6),
    (1, 6, 6, 4, 1, 10, 6),
    (2, 3, 8, 2, 2, 4, 7),
]
MASKS = {
    "causal": {},
    "all": {"causal": False},
    "all-window": {"causal": False, "window": 2},
    "window": {"window": 3},
    "segments": {"segments": True},
    "segments-window": {"segments": True, "window": 2},
}
PLAIN = [x for x in IMPLEMENTATIONS if x not in ("splash", "cpu")]  # have tests of their own
FAST = [name for name in PLAIN if name != "reference"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of two queries, so that tiny rows have several, the last one shorter."""
    monkeypatch.setattr(reference, "SMALLEST_BLOCK", 2)


def serves(implementation, who: AttentionMask) -> bool:
    """Blocks need whole rows that attend to themselves; all else serves every mask."""
    return implementation != "blocked" or who.aligned


def inputs(shape, dtype=jnp.float32, seed=0) -> tuple[jax.Array, jax.Array, jax.Array]:
    b, t, s, h, k, c, *z = shape
    rng = np.random.default_rng(seed)

    def draw(*dims):
        return jnp.asarray(rng.normal(size=dims), dtype)

    return draw(b, t, h, c), draw(b, s, k, c), draw(b, s, k, *(z or [c]))


def mask(shape, causal=True, window=None, segments=False) -> AttentionMask:
    """Queries are the last ``t`` of ``s`` positions; with segments, documents of three tokens."""
    b, t, s = shape[:3]
    keys = np.broadcast_to(np.arange(s), (b, s))
    numbers = keys // 3 + 1
    if segments:
        keys = keys % 3
    parts = [keys[:, s - t :], keys]
    if segments:
        parts += [numbers[:, s - t :], numbers]
    arrays = [jnp.asarray(part, jnp.int32) for part in parts]
    return AttentionMask(*arrays, causal=causal, aligned=causal and t == s, window=window)


def run(args, who: AttentionMask, **options) -> jax.Array:
    query, key, value = args
    return attention(query, key, value, who, **options)


def by_hand(query, key, value, visible, scale, softcap, sinks=None):
    """One score at a time, float64; a sink is a score with nothing to mix in."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    b, t, h, _ = query.shape
    out = np.zeros((b, t, h, value.shape[-1]))
    for row, at, head in np.ndindex(b, t, h):
        shared = head // (h // key.shape[2])
        scores = key[row, :, shared] @ query[row, at, head] * scale
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.where(visible[row, at], np.exp(scores - scores.max()), 0)
        sink = 0 if sinks is None else np.exp(sinks[head] - scores.max())
        out[row, at, head] = weights / (weights.sum() + sink) @ value[row, :, shared]
    return out


@pytest.mark.parametrize(("softcap", "sinks"), [(None, False), (2.0, True)])
@pytest.mark.parametrize("name", MASKS)
def test_reference_is_the_definition(name, softcap, sinks):
    shape = (2, 4, 11, 6, 3, 6, 5)
    args, who = inputs(shape), mask(shape, **MASKS[name])
    sunk = jnp.linspace(-2, 2, 6) if sinks else None
    attend = functools.partial(attention, scale=0.7, softcap=softcap, implementation="reference")
    found = jax.jit(attend)(*args, who, sinks=sunk)
    expected = by_hand(*args, np.asarray(who.dense()), 0.7, softcap, sunk)
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("shape", "softcap", "sinks"),
    [*((shape, None, False) for shape in SHAPES), (SHAPES[2], 2.0, True), (SHAPES[6], None, True)],
    ids=str,
)
@pytest.mark.parametrize("implementation", FAST)
def test_fast_forms_equal_the_reference_with_gradients(implementation, shape, softcap, sinks):
    args = inputs(shape)
    sunk = (jnp.linspace(-2, 2, shape[3]),) if sinks else ()

    def differentiate(implementation, who, args):
        def loss(args, sunk):
            options = {"scale": 0.5, "softcap": softcap, "implementation": implementation}
            out = run(args, who, sinks=sunk[0] if sunk else None, **options)
            weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
            return (out * weights).sum(), out

        gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        (_, out), gradients = gradient(args, sunk)
        return [out, *jax.tree.leaves(gradients)]

    @jax.jit
    def every(masks, args):
        names = ("reference", implementation)
        return [[differentiate(name, who, args) for who in masks] for name in names]

    masks = {name: mask(shape, **kind) for name, kind in MASKS.items()}
    masks = {name: who for name, who in masks.items() if serves(implementation, who)}
    if not masks:
        pytest.skip("another mask than this form serves")
    for kind, expected, found in zip(masks, *every(list(masks.values()), args), strict=True):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5, rtol=0, err_msg=kind)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bfloat16_stays_near_float32(shape):
    """Inputs, weights and results are rounded to 8 bits; scores and softmax are not."""
    args, who = inputs(shape, jnp.bfloat16), mask(shape)

    @jax.jit
    def every(args, who):
        wide = [x.astype(jnp.float32) for x in args]
        expected = run(wide, who, scale=0.5, implementation="reference")
        names = [name for name in PLAIN if serves(name, who)]
        return expected, [run(args, who, scale=0.5, implementation=n) for n in names]

    expected, results = every(args, who)
    for found in results:
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.03, rtol=0.01)


@pytest.mark.parametrize("implementation", PLAIN)
def test_a_query_that_sees_nothing_gives_no_nan(implementation):
    positions = jnp.arange(3)[None]
    segments = jnp.array([[1, 9, 1]]), jnp.array([[1, 1, 1]])
    who = AttentionMask(positions, positions, *segments, aligned=True)
    args = inputs((1, 3, 3, 2, 1, 4))

    def total(query):
        return attention(query, *args[1:], who, scale=1.0, implementation=implementation).sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(args[0])
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_hidden_keys_have_no_influence():
    shape = (1, 6, 6, 2, 1, 4)
    query, key, value = inputs(shape)
    who = mask(shape, segments=True)
    attend = jax.jit(lambda key, value: attention(query, key, value, who, scale=1.0))
    before, after = attend(key, value), attend(key.at[:, :3].set(99.0), value.at[:, :3].set(99.0))
    np.testing.assert_array_equal(before[:, 3:], after[:, 3:])
    assert (before[:, :3] != after[:, :3]).any()


def test_mask_by_hand():
    positions = jnp.array([[0, 1, 0, 1, 2]])
    documents = jnp.array([[1, 1, 2, 2, 2]])
    who = AttentionMask(positions, positions, documents, documents, window=2)
    assert who.dense()[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("most", [3, 16])
def test_blocks_of_every_number_and_size(monkeypatch, window, most):
    """Block sizes that do not divide the row, and windows longer and shorter than a block."""
    monkeypatch.setattr(reference, "MOST_BLOCKS", most)
    shape = (1, 23, 23, 2, 1, 4)
    who, args = mask(shape, window=window), inputs(shape)

    @jax.jit
    def both(args, who):
        names = "blocked", "reference"
        return [run(args, who, scale=0.5, implementation=name) for name in names]

    found, expected = both(args, who)
    np.testing.assert_allclose(found, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", [{"causal": False}, {"aligned": False}], ids=str)
def test_blocked_refuses_masks_that_it_cannot_serve(kind):
    positions = jnp.arange(4)[None]
    who = AttentionMask(positions, positions, **({"aligned": True} | kind))
    with pytest.raises(ConfigError, match=r"'blocked' with keys.*use 'auto'"):
        run(inputs((1, 4, 4, 2, 1, 4)), who, scale=1.0, implementation="blocked")


def test_auto_and_unknown_implementation():
    args, who = inputs((1, 2, 2, 2, 1, 4)), mask((1, 2, 2))
    auto, grouped = (
        jax.jit(functools.partial(attention, scale=1.0, implementation=name))(*args, who)
        for name in ("auto", "grouped")
    )
    np.testing.assert_array_equal(auto, grouped)
    with pytest.raises(ConfigError, match=r"found 'groupd'.*did you mean grouped\?"):
        run(args, who, scale=1.0, implementation="groupd")
