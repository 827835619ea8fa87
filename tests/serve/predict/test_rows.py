"""Rows of a batch: what mixes them is found on the traced program, what does not keeps batching."""

import asyncio

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from jax import lax

from ziggurat.serve.predict import LoadedBundle, export
from ziggurat.serve.predict.batching import BatchScheduler, Queue
from ziggurat.serve.predict.config import Batching
from ziggurat.serve.predict.rows import mixing
from ziggurat.serve.predict.statistics import Statistics

pytestmark = pytest.mark.usefixtures("users_promotion")
F, I = jnp.float32, jnp.int32
X, T = ("b,4", F), ("b,t,4", F)
IDS, IMAGES = ("b,t", I), ("b,8,8,1", F)
W = jnp.asarray(np.random.default_rng(0).standard_normal((4, 4)), F)
NHWC = ("NHWC", "HWIO", "NHWC")


def recurrent(x, what):
    start = jnp.zeros((x.shape[0], 4))
    return lax.scan(lambda h, v: (jnp.tanh(v + h @ W), h), start, x.swapaxes(0, 1))[what]


def capacity(x):
    """Experts with a limit on how many rows each takes."""
    one = jax.nn.one_hot(jnp.argmax(x @ W, -1), 4)
    return jnp.where(((jnp.cumsum(one, 0) * one).sum(-1) <= 4)[:, None], x * 2, x)


def first_seen(ids):
    """Whether an id was seen in an earlier row."""
    first = jnp.zeros(1000, I).at[ids[:, 0]].max(1 + jnp.arange(ids.shape[0]))
    return first[ids[:, 0]]


def ends_with_all(x):
    return lax.while_loop(lambda s: jnp.any(s > 1.5), lambda s: s * 0.9, x)


APART = {
    "softmax": (lambda x: jax.nn.softmax(x, -1), X),
    "layer norm": (lambda x: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1), X),
    "activations": (lambda x: jax.nn.gelu(x) + jax.nn.silu(x) + jax.nn.relu(x), X),
    "last token": (lambda x, i: x[jnp.arange(x.shape[0]), i], T, ("b", I)),
    "take along axis": (lambda x, i: jnp.take_along_axis(x, i[:, None], 1), X, ("b", I)),
    "tokens as rows": (lambda x: (x.reshape(-1, 4) @ W).reshape(x.shape), T),
    "zeros as rows": (lambda x: x + jnp.zeros((x.shape[0] * x.shape[1], 4)).reshape(x.shape), T),
    "scatter at own row": (lambda x: jnp.zeros(x.shape).at[jnp.arange(x.shape[0]), 0].set(1.0), X),
    "scatter under vmap": (jax.vmap(lambda r: jnp.zeros(9).at[r].add(1.0)), IDS),
    "seeds": (jax.vmap(lambda s: jax.random.normal(jax.random.key(s), (3,))), ("b", I)),
    "loop over rows": (
        lambda x: lax.map(lambda r: lax.while_loop(lambda v: v.sum() > 1, lambda v: v / 2, r), x),
        X,
    ),
    "embedding": (lambda ids: W[ids].mean(1), IDS),
    "one hot": (lambda ids: jax.nn.one_hot(ids, 5).sum(1), IDS),
    "positions": (lambda ids: W[jnp.arange(ids.shape[1]) % 4] + ids[..., None], IDS),
    "attention": (
        lambda x: jax.nn.dot_product_attention(*[x[:, :, None]] * 3, is_causal=True),
        T,
    ),
    "products within rows": (lambda x: jnp.einsum("btd,bsd->bts", x, x), T),
    "recurrent, last": (lambda x: recurrent(x, 0), T),
    "recurrent, all": (lambda x: recurrent(x, 1).swapaxes(0, 1), T),
    "convolution": (
        lambda x: lax.conv_general_dilated(
            x, jnp.ones((3, 3, 1, 2)), (1, 1), "SAME", dimension_numbers=NHWC
        ),
        IMAGES,
    ),
    "pooling": (
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        IMAGES,
    ),
    "sort": (lambda x: jnp.sort(x, -1), X),
    "top k": (lambda x: lax.top_k(x, 2), X),
    "quantile": (lambda x: jnp.quantile(x, 0.5, axis=1), X),
    "cumulative": (lambda x: jnp.cumsum(x, 1), X),
    "argmax": (lambda x: x.argmax(-1), X),
    "fixed loop": (lambda x: lax.fori_loop(0, 5, lambda i, v: v * 0.9, x), X),
    "solve": (lambda x: jnp.linalg.solve(x @ x.mT + jnp.eye(4), x), ("b,4,4", F)),
    "fourier": (lambda x: jnp.fft.rfft(x).real, X),
    "flip, roll, pad, tile": (
        lambda x: jnp.tile(jnp.pad(jnp.roll(x[:, ::-1], 1, 1), ((0, 0), (1, 1))), (1, 2)),
        X,
    ),
    "stack": (lambda x: jnp.stack([x[:, i] for i in range(4)], 1), X),
    "concatenate": (lambda x: jnp.concatenate([x, jnp.ones((x.shape[0], 1))], 1), X),
    "slices": (lambda x: lax.dynamic_slice_in_dim(x, 1, 2, 1), X),
    "cache": (lambda x: lax.dynamic_update_slice(jnp.zeros((x.shape[0], 8)), x, (0, 2)), X),
    "scale of each row": (jax.vmap(lambda r: r / jnp.abs(r).max()), X),
    "constant": (lambda x: jnp.zeros((x.shape[0], 2)), X),
}

MIXED = {
    "mean": (lambda x: x - x.mean(0), X),
    "batch norm": (lambda x: (x - x.mean(0)) / (x.std(0) + 1), X),
    "largest": (lambda x: x / jnp.maximum(jnp.abs(x).max() / 6, 1), X),
    "sort": (lambda x: jnp.sort(x, 0), X),
    "sort by a key": (lambda x: x[jnp.argsort(x[:, 0])], X),
    "cumulative": (lambda x: jnp.cumsum(x, 0), X),
    "softmax": (lambda x: jax.nn.softmax(x, 0), X),
    "argmin": (lambda x: x - x[x[:, 0].argmin()], X),
    "roll": (lambda x: jnp.roll(x, 1, 0), X),
    "flip": (lambda x: x[::-1], X),
    "products of rows": (lambda x: x @ x.T @ x, X),
    "sum of products": (lambda x: x @ jnp.einsum("bi,bj->ij", x, x), X),
    "number of rows": (lambda x: x * x.shape[0], X),
    "sum of ones": (lambda x: x + jnp.ones(x.shape[0]).sum(), X),
    "place of a row": (lambda x: x + jnp.arange(x.shape[0])[:, None], X),
    "table by place": (lambda x: x + W[jnp.arange(x.shape[0]) % 4], X),
    "identity matrix": (lambda x: jnp.eye(x.shape[0]) @ x, X),
    "gather by a computed index": (lambda x: x[(x[:, 0] > 0).astype(int)], X),
    "scatter by a computed index": (
        lambda x: jnp.zeros(x.shape).at[(x[:, 0] > 0).astype(int)].add(x),
        X,
    ),
    "capacity of experts": (capacity, X),
    "first seen": (first_seen, ("b,2", I)),
    "loop until all are done": (ends_with_all, X),
    "branch by any": (lambda x: lax.cond(jnp.any(x > 3), lambda v: v * 0, lambda v: v, x), X),
    "first row": (lambda x: x - x[:1], X),
    "scan that carries": (lambda x: lax.scan(lambda c, r: (c + r, c), jnp.zeros(4), x)[1], X),
    "noise for all": (lambda x: x + jax.random.normal(jax.random.key(0), x.shape), X),
    "reshape across rows": (lambda x: x.reshape(4, -1).T, X),
    "nearest other row": (lambda x: (x[:, None] - x[None]).min(1), X),
    "tokens of all rows": (lambda x: x.reshape(-1, 4).cumsum(0).reshape(x.shape), T),
    "convolution along rows": (
        lambda x: lax.conv_general_dilated(
            x[None], jnp.ones((3, 4, 4)), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )[0],
        X,
    ),
    "window over rows": (
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (3, 1), (1, 1), "SAME"),
        X,
    ),
    "shifted by padding": (lambda x: jnp.pad(x, ((1, 0), (0, 0)))[:-1], X),
    "fourier over rows": (lambda x: jnp.fft.fft(x, axis=0).real, X),
    "standard deviation of all": (lambda x: x / x.std(), X),
    "whole in a vmapped function": (
        lambda x: jax.vmap(lambda r: r - x.mean(0))(x),
        X,
    ),
    "whole in a checkpointed one": (jax.checkpoint(lambda x: jnp.sin(x - x.min(0))), X),
}  # fmt: skip


def verdicts(function, specs):
    scope = jax_export.SymbolicScope(["t <= 64"])
    given = [
        jax.ShapeDtypeStruct(jax_export.symbolic_shape(text, scope=scope), kind)
        for text, kind in specs
    ]
    return mixing(jax.jit(function).trace(*given).jaxpr, [True] * len(given))


@pytest.mark.parametrize("name", APART)
def test_independent_rows_are_found_so(name):
    function, *specs = APART[name]
    assert not any(verdicts(function, specs))


@pytest.mark.parametrize("name", APART)
def test_and_they_are(name):
    """The table of independent functions is itself checked: row 1 of three, alone."""
    function, *specs = APART[name]
    draw = np.random.default_rng(1)
    given = []
    for text, kind in specs:
        shape = [{"b": 3, "t": 3}.get(size) or int(size) for size in text.split(",")]
        whole = draw.integers(0, 3, shape) if kind is I else draw.standard_normal(shape)
        given.append(jnp.asarray(whole, kind))
    run = jax.jit(function)
    together = jax.tree.leaves(run(*given))
    alone = jax.tree.leaves(run(*[array[1:2] for array in given]))
    for one, all_rows in zip(alone, together, strict=True):
        np.testing.assert_allclose(one[0], all_rows[1], 1e-4, 1e-5)


@pytest.mark.parametrize("name", MIXED)
def test_mixed_rows_are_found_with_a_reason(name):
    function, *specs = MIXED[name]
    assert all(verdicts(function, specs))


def test_one_mixed_output_among_several():
    first, second = verdicts(lambda x: (x * 2, x - x.mean(0)), [X])
    assert first is None
    assert second == "reduce_sum along the batch"


def test_what_mixes_is_served_one_request_at_a_time(tmp_path, caplog):
    """Joined by the server or not: a client's answer does not depend on who else asks."""

    def clip(x):
        return x / jnp.maximum(jnp.abs(x).max() / 6, 1)

    path = export(clip, None, "x:FP32[b,4] -> y", tmp_path / "m" / "1", platforms=["cpu"])
    assert "b is served as it comes, one request is run at a time" in caplog.text
    bundle = LoadedBundle.load(path, batch_sizes=(1, 4))
    assert "reduce_max along the batch" in bundle.manifest.exact["b"]
    mine, others = np.full((1, 4), 0.5, np.float32), np.full((3, 4), 5000, np.float32)

    async def ask(queue):
        return await asyncio.gather(*(queue.infer({"x": x}) for x in (others, mine, mine, others)))

    with BatchScheduler() as scheduler:
        limits = Batching(max_batch_size=4, max_queue_delay_us=100_000)
        queue = Queue(scheduler, bundle.manifest, bundle.programs, limits, Statistics())
        answers = asyncio.run(ask(queue))
    for given, (got,) in zip((others, mine, mine, others), answers, strict=True):
        np.testing.assert_allclose(got, clip(given), 1e-6)
    assert queue.statistics.plain()["execution_count"] == 4
