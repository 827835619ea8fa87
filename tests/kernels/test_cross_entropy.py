"""Linear cross-entropy: chunked = reference in value and gradient, in less memory, sharded."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ziggurat.core.errors import ConfigError, ShapeError
from ziggurat.kernels import cross_entropy
from ziggurat.kernels.cross_entropy import linear_cross_entropy


@pytest.fixture(autouse=True)
def _chunked(monkeypatch):
    """``auto`` is ``chunked`` here; the C++ kernel has tests of its own."""
    monkeypatch.setattr("ziggurat.kernels.cross_entropy.cpu.serves", lambda *_: False)


def inputs(n=37, d=16, v=50, dtype=jnp.float32, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden = jax.random.normal(keys[0], (n, d), dtype)
    weight = jax.random.normal(keys[1], (v, d), dtype)
    targets = jax.random.randint(keys[2], (n,), 0, v)
    weights = jax.random.uniform(keys[3], (n,)) * (jnp.arange(n) % 5 != 2).astype(jnp.float32)
    return hidden, weight, targets, weights


def value_and_grads(arrays, **options):
    def loss(hidden, weight, weights):
        out = linear_cross_entropy(hidden, weight, arrays[2], weights, **options)
        return 0.5 * out.loss, out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
        arrays[0], arrays[1], arrays[3]
    )
    return out, grads


def close(got, expected, tolerance):
    """Equal to ``tolerance`` times the largest magnitude of the expected array."""
    got, expected = (np.asarray(x, np.float32) for x in (got, expected))
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


OPTIONS = [
    {},
    {"z_loss": 1e-2},
    {"logit_softcap": 3.0},
    {"z_loss": 1e-3, "logit_softcap": 5.0},
]


def test_reference_is_the_definition():
    hidden, weight, targets, weights = inputs()
    out = linear_cross_entropy(
        hidden,
        weight,
        targets,
        weights,
        chunk_tokens=8,
        implementation="reference",
        z_loss=0.01,
        logit_softcap=4.0,
    )
    h, w = np.asarray(hidden, np.float64), np.asarray(weight, np.float64)
    logits = 4 * np.tanh(h @ w.T / 4)
    log_z = np.log(np.exp(logits).sum(1))
    mask = np.asarray(weights, np.float64)
    nll = (mask * (log_z - logits[np.arange(len(h)), np.asarray(targets)])).sum()
    np.testing.assert_allclose(out.nll, nll, rtol=1e-6)
    np.testing.assert_allclose(out.z_loss, (mask * 0.01 * log_z**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(out.loss, out.nll + out.z_loss, rtol=1e-6)
    np.testing.assert_allclose(out.log_normalizer, (mask * log_z).sum(), rtol=1e-6)
    np.testing.assert_allclose(out.weight, mask.sum(), rtol=1e-6)
    assert out.correct == ((logits.argmax(1) == np.asarray(targets)) & (mask > 0)).sum()
    assert out.loss.dtype == jnp.float32


@functools.cache
def reference(index):
    return value_and_grads(inputs(), chunk_tokens=1, implementation="reference", **OPTIONS[index])


@pytest.mark.parametrize("index", range(len(OPTIONS)))
@pytest.mark.parametrize(("chunk", "shards"), [(1, 1), (10, 1), (64, 1), (8, 4)])
def test_chunked_equals_reference(index, chunk, shards):
    options = OPTIONS[index]
    expected, expected_grads = reference(index)
    got, grads = value_and_grads(
        inputs(), chunk_tokens=chunk, implementation="chunked", token_shards=shards, **options
    )
    for name in got._fields:
        close(getattr(got, name), getattr(expected, name), 1e-5)
    for a, b in zip(grads, expected_grads, strict=True):
        assert a.dtype == b.dtype
        close(a, b, 1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_bfloat16(options):
    """bfloat16 inputs against float32 arithmetic on the same values: the loss to 1e-3, gradients to
    1e-2 of their largest entry (bfloat16 keeps 8 bits, 4e-3)."""
    arrays = inputs(n=64, d=32, v=96, dtype=jnp.bfloat16)
    exact = (arrays[0].astype(jnp.float32), arrays[1].astype(jnp.float32), *arrays[2:])
    expected, expected_grads = value_and_grads(
        exact, chunk_tokens=16, implementation="reference", **options
    )
    got, grads = value_and_grads(arrays, chunk_tokens=16, implementation="chunked", **options)
    assert got.loss.dtype == jnp.float32
    assert grads[0].dtype == grads[1].dtype == jnp.bfloat16
    close(got.loss, expected.loss, 1e-3)
    for a, b in zip(grads, expected_grads, strict=True):
        close(a, b, 1e-2)


def test_compute_dtype_is_that_of_hidden_unless_given():
    hidden, weight, targets, weights = inputs()
    narrow = hidden.astype(jnp.bfloat16)

    @jax.jit
    def losses(hidden, weight):
        return [
            linear_cross_entropy(
                hidden, weight, targets, weights, chunk_tokens=8, compute_dtype=dtype
            ).loss
            for dtype in (None, jnp.bfloat16, jnp.float32)
        ]

    default, half, single = losses(narrow, weight)
    assert default == half
    assert default != single
    assert single == losses(narrow.astype(jnp.float32), weight)[0]


def test_forward_only_equals_differentiated():
    arrays = inputs()
    plain = jax.jit(lambda *a: linear_cross_entropy(*a, chunk_tokens=8, z_loss=0.01))(*arrays)
    differentiated, _ = value_and_grads(arrays, chunk_tokens=8, z_loss=0.01)
    for a, b in zip(plain, differentiated, strict=True):
        close(a, b, 1e-6)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_only_the_loss_carries_a_gradient(implementation):
    hidden, weight, targets, weights = inputs()

    def report(name):
        def run(h):
            out = linear_cross_entropy(
                h, weight, targets, weights, chunk_tokens=8, implementation=implementation
            )
            return getattr(out, name)

        return np.abs(jax.grad(run)(hidden)).max()

    assert report("loss") > 0
    assert [report(name) for name in ("nll", "z_loss", "log_normalizer")] == [0, 0, 0]


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("bad", [-100, 50])
def test_targets_outside_the_vocabulary(implementation, bad):
    hidden, weight, targets, weights = inputs()
    options = {"chunk_tokens": 8, "implementation": implementation}
    clean, clean_grads = value_and_grads((hidden, weight, targets, weights), **options)
    ignored = jnp.where(weights == 0, bad, targets)
    out, grads = value_and_grads((hidden, weight, ignored, weights), **options)
    for a, b in zip((out, grads[:2]), (clean, clean_grads[:2]), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    counted = jnp.where(jnp.arange(37) == 0, bad, targets)
    assert weights[0] != 0
    assert np.isnan(linear_cross_entropy(hidden, weight, counted, weights, **options).loss)


def test_extreme_logits_stay_finite():
    hidden, weight, targets, weights = inputs()
    out, grads = value_and_grads((hidden * 1e3, weight, targets, weights), chunk_tokens=8)
    assert all(np.isfinite(x).all() for x in (*out, *grads))


def logits_bytes(arrays):
    return arrays[0].shape[0] * arrays[1].shape[0] * 4


@pytest.mark.parametrize("differentiate", [False, True])
def test_memory(differentiate):
    """The chunked form needs a few chunks of logits, the reference all of them."""
    arrays = inputs(n=4096, d=16, v=2048)

    def temporaries(implementation):
        def loss(hidden, weight):
            out = linear_cross_entropy(
                hidden,
                weight,
                *arrays[2:],
                chunk_tokens=128,
                implementation=implementation,
                z_loss=1e-4,
            )
            return out.loss

        run = jax.grad(loss, argnums=(0, 1)) if differentiate else loss
        compiled = jax.jit(run).lower(*arrays[:2]).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries("reference") >= logits_bytes(arrays)
    assert temporaries("chunked") < logits_bytes(arrays) / 8


def flops(function, *arrays):
    """Arithmetic of one chunk: XLA counts the body of a loop once."""
    return jax.jit(function).lower(*arrays).compile().cost_analysis()["flops"]


def test_work_is_skipped_when_not_needed():
    """One matrix product for the loss, two with one gradient (a frozen output layer), three with
    both."""
    arrays = inputs(n=256, d=256, v=512)
    product = 2 * 64 * 256 * 512

    def loss(hidden, weight):
        return linear_cross_entropy(hidden, weight, *arrays[2:], chunk_tokens=64).loss

    counts = [
        flops(run, *arrays[:2]) / product
        for run in (loss, jax.grad(loss), jax.grad(loss, 1), jax.grad(loss, (0, 1)))
    ]
    np.testing.assert_allclose(counts, [1, 2, 2, 3], atol=0.35)


def mesh():
    return Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))


LAYOUTS = {
    "data": (P("data"), P()),
    "vocabulary": (P("data"), P("model")),
    "fsdp": (P("data"), P(None, "data")),
    "fsdp, vocabulary": (P("data"), P("model", "data")),
    "tensor": (P(None, "model"), P(None, "model")),
    "all devices": (P(("data", "model")), P(("data", "model"))),
}


@functools.cache
def unsharded():
    arrays, options = inputs(n=64, d=16, v=48), {"chunk_tokens": 16, "z_loss": 1e-3}
    return arrays, options, *value_and_grads(arrays, **options)


@pytest.mark.parametrize(
    ("layout", "shards"), [*((name, 1) for name in LAYOUTS), ("data", 4), ("fsdp, vocabulary", 4)]
)
def test_sharded_equals_unsharded(layout, shards):
    arrays, options, expected, expected_grads = unsharded()
    hidden_spec, weight_spec = LAYOUTS[layout]
    tokens = P(hidden_spec[0] if hidden_spec else None)
    specs = (hidden_spec, weight_spec, tokens, tokens)
    sharded = tuple(
        jax.device_put(x, NamedSharding(mesh(), spec))
        for x, spec in zip(arrays, specs, strict=True)
    )
    got, grads = value_and_grads(sharded, token_shards=shards, **options)
    for a, b in zip((*got, *grads), (*expected, *expected_grads), strict=True):
        close(a, b, 1e-5)


@pytest.mark.parametrize(("shards", "inside"), [(1, True), (4, False)])
def test_token_shards_move_the_reduction_out_of_the_loop(shards, inside):
    """Data-parallel tokens: no collective touches the weight's gradient inside the loop."""
    arrays = inputs(n=64, d=16, v=48)
    devices = Mesh(np.array(jax.devices()[:4]), ("data",))
    rows, whole = NamedSharding(devices, P("data")), NamedSharding(devices, P())

    def loss(hidden, weight, targets, weights):
        return linear_cross_entropy(
            hidden, weight, targets, weights, chunk_tokens=16, token_shards=shards
        ).loss

    run = jax.jit(
        jax.grad(loss, (0, 1)), in_shardings=(rows, whole, rows, rows), out_shardings=(rows, whole)
    )
    text = run.lower(*arrays).compile().as_text()
    body = re.search(r"while\(.*body=%?([\w.\-]+)", text)
    assert body, "no loop"
    start = text.index(f"%{body[1]} (")
    section = text[start : text.index("\n}", start)]
    collectives = re.findall(r"= \S*48,16\S* all-reduce", section)
    assert bool(collectives) is inside
    assert not re.findall(r"all-gather|all-to-all|collective-permute", text)


@pytest.mark.slow
def test_inside_scan_and_donated():
    """Gradient accumulation: the sum over micro-batches is the gradient of the whole."""
    hidden, weight, targets, weights = inputs(n=48)
    total = weights.sum()

    def loss(weight, hidden, targets, weights):
        out = linear_cross_entropy(hidden, weight, targets, weights, chunk_tokens=8)
        return out.loss / total

    def accumulate(weight, *batch):
        def micro(carry, part):
            return jax.tree.map(jnp.add, carry, jax.value_and_grad(loss)(weight, *part)), None

        parts = tuple(x.reshape(3, 16, *x.shape[1:]) for x in batch)
        (value, grad), _ = jax.lax.scan(micro, (0.0, jnp.zeros_like(weight)), parts)
        return value, weight - grad

    value, grad = jax.value_and_grad(loss)(weight, hidden, targets, weights)
    expected = weight - grad
    got_value, got = jax.jit(accumulate, donate_argnums=0)(weight.copy(), hidden, targets, weights)
    close(got_value, value, 1e-6)
    close(got, expected, 1e-6)


def test_bitwise_repeatable():
    first = value_and_grads(inputs(), chunk_tokens=8)
    second = value_and_grads(inputs(), chunk_tokens=8)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_unknown_implementation_and_options():
    arrays = inputs()
    with pytest.raises(ConfigError, match="did you mean chunked"):
        linear_cross_entropy(*arrays, chunk_tokens=8, implementation="chunkd")
    for options, part in (
        ({"chunk_tokens": 0}, "chunk_tokens: found 0"),
        ({"chunk_tokens": 8, "z_loss": -1.0}, "z_loss: found -1.0"),
        ({"chunk_tokens": 8, "logit_softcap": 0.0}, "logit_softcap: found 0.0"),
        ({"chunk_tokens": 8, "token_shards": 0}, "token_shards: found 0"),
    ):
        with pytest.raises(ConfigError, match=part):
            linear_cross_entropy(*arrays, **options)


@pytest.mark.parametrize(
    "shapes",
    [
        ((4, 8), (16, 9), (4,), (4,)),
        ((2, 2, 8), (16, 8), (4,), (4,)),
        ((4, 8), (16, 8), (5,), (4,)),
        ((4, 8), (16, 8), (4,), (4, 1)),
        ((0, 8), (16, 8), (0,), (0,)),
    ],
)
def test_shapes_that_do_not_fit(shapes):
    with pytest.raises(ShapeError, match="linear_cross_entropy: found"):
        cross_entropy._check_shapes(*shapes)
