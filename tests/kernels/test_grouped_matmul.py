"""Grouped matrix products: every form is the definition, with its gradients, whatever the groups.

Tolerance 1e-5 on sums of up to 16 products of order one: they are added in another order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core.errors import ConfigError, ShapeError
from ziggurat.kernels.grouped_matmul import IMPLEMENTATIONS, blocked, grouped_matmul
from ziggurat.kernels.linear import LoraWeight, WeightFormat, dense, quantized
from ziggurat.kernels.weight_types import BUILT_IN
from ziggurat.quantize.weights import quantize_array

ROWS = 13
GROUPS = {  # sizes of the groups of 13 rows
    "even": [4, 3, 3, 3],
    "uneven": [1, 7, 0, 5],
    "one group has all": [0, 0, 13, 0],
    "empty at both ends": [0, 6, 7, 0],
    "rows of no group": [2, 0, 4, 0],
    "no group has rows": [0, 0, 0, 0],
}


def inputs(rows, groups, width=8, out=6):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(rows, width)), rng.normal(size=(groups, width, out))
    return x, kernel, rng.normal(size=(rows, out))


def by_hand(x, kernel, dy, sizes):
    """Group after group, in float64: products and both gradients."""
    y, dx, dkernel = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(kernel)
    start = 0
    for group, size in enumerate(sizes):
        rows = slice(start, start + size)
        y[rows] = x[rows] @ kernel[group]
        dx[rows] = dy[rows] @ kernel[group].T
        dkernel[group] = x[rows].T @ dy[rows]
        start += size
    return y, dx, dkernel


@pytest.fixture(scope="module")
def every_form():
    @jax.jit
    def every(x, kernel, dy, sizes):
        def loss(x, kernel, implementation):
            y = grouped_matmul(x, kernel, sizes, implementation=implementation)
            return (y * dy).sum(), y

        gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
        return {form: gradient(x, kernel, form) for form in IMPLEMENTATIONS}

    return every


def check(every, rows, sizes):
    x, kernel, dy = inputs(rows, len(sizes))
    args = [jnp.asarray(a, jnp.float32) for a in (x, kernel, dy)]
    expected = by_hand(x, kernel, dy, sizes)
    for form, ((dx, dkernel), y) in every(*args, jnp.asarray(sizes)).items():
        for found, wanted in zip((y, dx, dkernel), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5, err_msg=form)


@pytest.mark.parametrize("name", GROUPS)
def test_every_form_is_the_definition_with_gradients(every_form, name):
    check(every_form, ROWS, GROUPS[name])


def test_fewer_rows_than_groups(every_form):
    check(every_form, 5, [0, 1, 0, 0, 2, 0, 0, 1, 1, 0])


def test_blocks_of_several_sizes(monkeypatch):
    """Groups that fill one block, several, and none."""
    monkeypatch.setattr(blocked, "MOST_ROWS", 4)
    sizes = [9, 0, 4, 1, 8]
    x, kernel, dy = inputs(24, 5)
    args = [jnp.asarray(a, jnp.float32) for a in (x, kernel)]

    @jax.jit
    def both(x, kernel, sizes, dy):
        y, back = jax.vjp(
            lambda x, k: grouped_matmul(x, k, sizes, implementation="blocked"), x, kernel
        )
        return y, *back(dy)

    found = both(*args, jnp.asarray(sizes), jnp.asarray(dy, jnp.float32))
    for one, wanted in zip(found, by_hand(x, kernel, dy, sizes), strict=True):
        np.testing.assert_allclose(one, wanted, atol=1e-5)


@pytest.mark.parametrize("implementation", list(IMPLEMENTATIONS))
def test_bfloat16_accumulates_in_float32(implementation):
    """A thousand ones: bfloat16 sums would stop at 256."""
    x, kernel = jnp.ones((3, 1000), jnp.bfloat16), jnp.ones((2, 1000, 2), jnp.bfloat16)
    out = grouped_matmul(x, kernel, jnp.array([1, 2]), implementation=implementation)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), 1000.0, rtol=2**-8)


@pytest.mark.parametrize(
    ("shapes", "part"),
    [
        (((4, 3), (2, 5, 6), (2,)), "rows of 3 channels"),
        (((4, 3), (2, 3, 6), (3,)), r"sizes \[3\]"),
        (((4, 3, 1), (2, 3, 6), (2,)), r"x \[4, 3, 1\]"),
    ],
)
def test_shapes_that_do_not_fit(shapes, part):
    x, kernel, sizes = (jnp.zeros(shape) for shape in shapes)
    unchecked = grouped_matmul.__wrapped__  # without the tests' check of annotations
    with pytest.raises(ShapeError, match=part):
        unchecked(x, kernel, sizes.astype(jnp.int32))


def test_unknown_implementation():
    with pytest.raises(ConfigError, match=r"found 'raged'.*did you mean ragged"):
        grouped_matmul(
            jnp.ones((1, 2)), jnp.ones((1, 2, 1)), jnp.array([1]), implementation="raged"
        )


product_of_group = jax.jit(lambda x, weight, group: quantized.product(x, weight[group]))


@pytest.mark.parametrize("sizes", [GROUPS["uneven"], GROUPS["rows of no group"]])
@pytest.mark.parametrize(
    "format",
    [
        WeightFormat("int8", "int8"),
        WeightFormat("fp8_e4m3", "fp8_e4m3"),
        WeightFormat("int4", "int8", 4),
        WeightFormat("int8", "int8", 4, True, 4),
        WeightFormat("int8"),
    ],
    ids=str,
)
def test_quantised_groups_are_each_the_quantised_product(format, sizes):
    """Experts' activations are rounded where the format says so, as in a layer without experts."""
    x, kernel, _ = inputs(ROWS, len(sizes))
    x, weight = jnp.asarray(x, jnp.float32), quantize_array(jnp.asarray(kernel), format, -2)
    found = np.asarray(grouped_matmul(x, weight, jnp.array(sizes)))
    expected, start = np.zeros(found.shape, np.float32), 0
    for group, size in enumerate(sizes):
        rows = slice(start, start + size)
        if size:  # Qwix quantises no empty arrays
            expected[rows] = product_of_group(np.asarray(x)[rows], weight, group)
        start += size
    np.testing.assert_allclose(found, expected, atol=1e-5)
    plain = grouped_matmul(x, dense(weight), jnp.array(sizes))
    assert (np.abs(found - plain).max() > 1e-3) == (format.activation is not None)


@pytest.mark.parametrize("kind", BUILT_IN)
@pytest.mark.sweep
def test_experts_of_every_type_are_dequantised_one_at_a_time(kind):
    """The compiled program's temporary memory, of 16 experts: two matrices of float32 (one, and its
    table's values). Of 8-bit floats, which XLA:CPU has not, also the stack's bytes once more, where
    a whole stack in float16 would be twice that."""
    experts, width = 16, 128
    kernel = WeightFormat(kind, tile_size=32).abstract((experts, width, width), jnp.float32, -2)
    x, sizes = jax.ShapeDtypeStruct((16, width), jnp.float32), jnp.zeros(experts, jnp.int32)
    compiled = jax.jit(grouped_matmul).lower(x, kernel, sizes).compile()
    matrix = 4 * width * width
    again = experts * width * width if kind.startswith("fp8") else 0
    assert compiled.memory_analysis().temp_size_in_bytes <= 2 * matrix + again


@pytest.mark.slow
def test_an_adapted_quantised_expert_rounds_what_its_base_multiplies():
    x, kernel, _ = inputs(ROWS, 4)
    sizes = jnp.array(GROUPS["even"])
    rng = np.random.default_rng(1)
    a, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 8, 2), (4, 2, 6)))
    base = quantize_array(jnp.asarray(kernel), WeightFormat("int8", "int8"), -2)
    x = jnp.asarray(x, jnp.float32)
    found = grouped_matmul(x, LoraWeight(base, a, b, 0.5), sizes)
    added = grouped_matmul(grouped_matmul(x, a, sizes), b, sizes)
    np.testing.assert_allclose(found, grouped_matmul(x, base, sizes) + 0.5 * added, atol=1e-5)
