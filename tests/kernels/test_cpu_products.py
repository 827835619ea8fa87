"""Products and the linear cross-entropy by the C++ kernels: equal to the plain forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from tests.kernels.cpu_library import require_library

from ziggurat import mesh as mesh_
from ziggurat.core.errors import ConfigError
from ziggurat.kernels.cross_entropy import linear_cross_entropy, linear_log_probs
from ziggurat.kernels.linear import project
from ziggurat.kernels.linear.cpu import multiply


@pytest.fixture(autouse=True, scope="module")
def _library():
    require_library()


def draw(*shapes: tuple[int, ...]) -> list[jax.Array]:
    generator = np.random.default_rng(0)
    return [jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in shapes]


SIZES = [  # m, n, k: register tiles, panels, slabs and row blocks whole, partial and single
    (1, 1, 1),
    (7, 15, 3),
    (8, 48, 384),
    (9, 49, 385),
    (100, 97, 40),
    (193, 300, 1000),
    (16, 16, 2000),
    (800, 20, 9),
    (0, 5, 3),
    (5, 3, 0),
]


@pytest.mark.parametrize(("m", "n", "k"), SIZES, ids=str)
def test_products_of_every_form(m, n, k):
    """Against float64; terms are near one, so that partial sums are near the root of k and their
    roundings add up to some k units in the last place."""
    (a, b) = draw((m, k), (k, n))
    expected = np.asarray(a, np.float64) @ np.asarray(b, np.float64)

    @jax.jit
    def every(a, b):
        forms = [(x, y) for x in (False, True) for y in (False, True)]
        return [
            multiply(a.T if x else a, b.T if y else b, transpose_a=x, transpose_b=y)[0]
            for x, y in forms
        ]

    for found in every(a, b):
        np.testing.assert_allclose(found, expected, atol=2e-7 * max(5, k), rtol=1e-6)


@pytest.mark.parametrize("leading", [(), (3, 20)], ids=str)
def test_project_with_gradients(leading):
    x, kernel = draw((*leading, 40), (40, 70))

    def total(x, kernel, implementation):
        return (project(x, kernel, implementation=implementation) ** 2).sum()

    @jax.jit
    def both(x, kernel):
        names = "flat", "cpu"
        return [jax.value_and_grad(total, (0, 1))(x, kernel, name) for name in names]

    expected, found = map(jax.tree.leaves, both(x, kernel))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_derivatives_of_every_form_and_order(transpose_a, transpose_b):
    a, b = draw((6, 5), (5, 7))
    a, b = a.T if transpose_a else a, b.T if transpose_b else b

    def kernel(a, b):
        return (multiply(a, b, transpose_a=transpose_a, transpose_b=transpose_b)[0] ** 3).sum()

    def plain(a, b):
        return (((a.T if transpose_a else a) @ (b.T if transpose_b else b)) ** 3).sum()

    def every(function):
        tangent = jax.jvp(function, (a, b), (jnp.sin(a), jnp.cos(b)))[1]
        second = jax.grad(lambda a, b: sum((x**2).sum() for x in jax.grad(function, (0, 1))(a, b)))
        return [tangent, jax.grad(function, (0, 1))(a, b), second(a, b)]

    found, expected = (jax.tree.leaves(jax.jit(lambda f=f: every(f))()) for f in (kernel, plain))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-3)


def test_the_same_bits_for_every_call():
    x, kernel = draw((500, 300), (300, 200))
    program = jax.jit(functools.partial(project, implementation="cpu"))
    first = np.asarray(program(x, kernel))
    for _ in range(10):
        np.testing.assert_array_equal(program(x, kernel), first)
    rows = np.asarray(program(x[:123], kernel))  # nor do other rows change a row
    np.testing.assert_array_equal(rows, first[:123])


def test_where_auto_takes_the_kernel():
    x, kernel = draw((64, 32), (32, 48))

    def stands(x, kernel) -> bool:
        return (
            "@ziggurat_product(" in jax.jit(lambda x, k: project(x, k)).lower(x, kernel).as_text()
        )

    assert stands(x, kernel)
    assert not stands(x[:1], kernel)
    assert not stands(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    layout = mesh_.build(mesh_.MeshConfig(fsdp=2), jax.devices()[:2])
    with layout.active():
        assert not stands(x, kernel)
        with pytest.raises(ConfigError, match="expected float32 on one CPU device"):
            project(x, kernel, implementation="cpu")
    exported = export.export(jax.jit(lambda x, k: project(x, k)))(x, kernel)
    assert "@ziggurat" not in exported.mlir_module()


LOSSES = [
    {},
    {"z_loss": 0.01, "logit_softcap": 3.0},
]


@pytest.mark.parametrize("options", LOSSES, ids=["plain", "z-loss and cap"])
@pytest.mark.parametrize(("n", "d", "v"), [(1, 3, 2), (37, 24, 101), (600, 16, 64)], ids=str)
def test_cross_entropy_equals_the_reference_with_gradients(n, d, v, options):
    """Chunks whole and partial, a masked token outside the vocabulary, weights that are not 1."""
    hidden, weight = draw((n, d), (v, d))
    targets = jnp.arange(n) * 7 % v
    weights = jnp.where(jnp.arange(n) % 5 == 3, 0.0, 0.5 + jnp.arange(n, dtype=jnp.float32) % 3)
    targets = jnp.where(weights == 0, -1, targets)

    def loss(hidden, weight, weights, implementation):
        out = linear_cross_entropy(
            hidden,
            weight,
            targets,
            weights,
            chunk_tokens=100,
            implementation=implementation,
            **options,
        )
        return out.loss, out

    @jax.jit
    def both(*arrays):
        names = "reference", "cpu"
        return [jax.value_and_grad(loss, (0, 1, 2), True)(*arrays, name) for name in names]

    expected, found = map(jax.tree.leaves, both(hidden, weight, weights))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5, rtol=2e-5)


def test_log_probs_and_a_target_outside_the_vocabulary():
    hidden, weight = draw((40, 12), (30, 12))
    targets = (jnp.arange(40) % 30).at[3].set(30)

    def total(hidden, weight, implementation):
        found = linear_log_probs(
            hidden, weight, targets, chunk_tokens=16, implementation=implementation
        )
        return jnp.where(targets < 30, found, 0.0).sum(), found

    @jax.jit
    def both(*arrays):
        names = "reference", "cpu"
        return [jax.grad(total, (0, 1), has_aux=True)(*arrays, name) for name in names]

    expected, found = map(jax.tree.leaves, both(hidden, weight))
    assert np.isnan(found[-1][3])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=2e-5)


def test_logits_are_never_held_whole():
    """XLA's memory for the program, and no buffer of ours counts with it: the kernel's own is one
    chunk, as `chunk_tokens` says, whatever the number of tokens."""
    n, d, v = 512, 8, 4096
    arrays = jax.ShapeDtypeStruct((n, d), jnp.float32), jax.ShapeDtypeStruct((v, d), jnp.float32)

    def loss(hidden, weight):
        ids, ones = jnp.zeros(n, jnp.int32), jnp.ones(n)
        return linear_cross_entropy(hidden, weight, ids, ones, chunk_tokens=64).loss

    memory = jax.jit(jax.grad(loss, (0, 1))).lower(*arrays).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < n * v


def test_the_training_step_uses_all_kernels():
    from tests.train.runs import run

    from ziggurat.train.ahead_of_time import lower_step

    text = lower_step(run("data.sequence_length=64"), jax.devices()[:1]).as_text()
    for name in ("attention", "attention_gradient", "product", "cross_entropy"):
        assert f"@ziggurat_{name}(" in text, name
