"""Products in C++ with weights as stored, against float64 products with what these stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.kernels.cpu_library import require_library

from ziggurat.kernels.linear import (
    LoraWeight,
    PackedWeight,
    QuantizedWeight,
    WeightFormat,
    dense,
    packs,
    project,
    project_each,
    project_rows,
    stored,
    take_rows,
)
from ziggurat.kernels.linear.weight_types import FOUR_BIT

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def library():
    require_library()


def weight(kind, k, n, axis, tile=None, symmetric=True):
    """A random matrix ``[k, n]``, for axis -1 ``[n, k]``, as stored."""
    shape = (k, n) if axis == -2 else (n, k)
    if kind in ("float32", "bfloat16"):
        return jnp.asarray(RNG.normal(size=shape), kind)
    format = WeightFormat(kind, tile_size=tile, symmetric=symmetric)
    parts = format.abstract(shape, jnp.float32, axis)
    low, high = (0, 256) if kind in FOUR_BIT else (-128, 128)
    values = RNG.integers(low, high, parts.qvalue.shape).astype(parts.qvalue.dtype)
    scale = RNG.uniform(0.1, 1.0, parts.scale.shape).astype(np.float32)
    zero = None if symmetric else jnp.asarray(RNG.integers(-8, 8, scale.shape), jnp.int8)
    return QuantizedWeight(jnp.asarray(values), jnp.asarray(scale), zero, format, axis)


def floats(made):
    """What it stands for, in float64; integers by hand, which is faster than by Qwix."""
    if not isinstance(made, QuantizedWeight) or made.format.weight == "nf4":
        return np.asarray(dense(made), np.float64)
    values = np.moveaxis(np.asarray(made.qvalue), made.axis, -1)
    if made.format.weight == "int4":
        pairs = np.stack([values & 15, values >> 4], axis=-1).astype(np.int8)
        values = ((pairs ^ 8) - 8).reshape(*values.shape[:-1], -1)
    scale = np.moveaxis(np.asarray(made.scale, np.float64), made.axis, -1)
    zero = (
        np.zeros_like(scale)
        if made.zero_point is None
        else np.moveaxis(np.asarray(made.zero_point), made.axis, -1)
    )
    tiles = values.reshape(*scale.shape, -1)
    whole = (tiles.astype(np.float64) - zero[..., None]) * scale[..., None]
    return np.moveaxis(whole.reshape(values.shape), -1, made.axis)


def close(found, x, matrix):
    """Sums of k float32 terms in some order: 1e-6 of the sum of magnitudes, a few roundings."""
    x = np.asarray(x, np.float64)
    bound = 1e-6 * (np.abs(x) @ np.abs(matrix)) + 1e-30
    assert found.dtype == jnp.float32
    assert (np.abs(np.asarray(found) - x @ matrix) <= bound).all()


FORMS = [
    ("float32", None, True),
    ("bfloat16", None, True),
    ("int8", None, True),
    ("int8", 64, False),
    ("int4", 32, False),
    ("int4", None, True),
    ("nf4", 64, True),
]


def packed(made, axis):
    """The same in panels, as arrays of JAX."""
    here = jax.tree.map(np.asarray, made)
    assert packs(here, axis)
    return jax.tree.map(jnp.asarray, PackedWeight.of(here, axis))


@pytest.mark.parametrize(("kind", "tile", "symmetric"), FORMS)
def test_products_are_those_of_the_dequantised_weight(kind, tile, symmetric):
    """Kernels as they are; columns that fill vectors and that do not."""
    for rows, k, n in ((2, 192, 37), (7, 64, 130)):
        k = k if tile else k - 10
        made, x = weight(kind, k, n, -2, tile, symmetric), RNG.normal(size=(rows, k))
        x = jnp.asarray(x, jnp.float32)
        assert stored.serves(x, [made], -2) == (kind not in ("float32", "bfloat16"))
        close(project(x, made).astype(jnp.float32), x, floats(made))


BLOCKS = [
    WeightFormat("uint4", tile_size=32, scale="float16", offset=True),
    WeightFormat("iq4", tile_size=32, scale="float16"),
    WeightFormat("fp4_e2m1", tile_size=32, scale="e8m0"),
    WeightFormat("fp4_bitsandbytes", tile_size=64),
]
"""Other programs' blocks of four bits that panels hold."""


def block_weight(format, k, n, axis):
    """A random matrix in one of these formats, as numpy arrays."""
    like = format.abstract((k, n) if axis == -2 else (n, k), jnp.float32, axis)

    def drawn(part):
        if part.dtype == jnp.uint8:
            low, high = (0, 256) if part is like.qvalue else (122, 127)
            return RNG.integers(low, high, part.shape).astype(np.uint8)
        return RNG.uniform(0.1, 1.0, part.shape).astype(part.dtype)

    return jax.tree.map(drawn, like)


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("format", BLOCKS, ids=lambda format: format.weight)
def test_blocks_of_other_programs_in_panels(format, axis):
    """Few rows and many; the matrix in panels is the matrix, and takes the room it may take."""
    for rows, k, n in ((1, 64, 96), (3, 192, 37), (7, 64, 130)):
        made = block_weight(format, k, n, axis)
        panels = packed(made, axis)
        matrix = np.asarray(dense(made), np.float64)
        x = jnp.asarray(RNG.normal(size=(rows, k)), jnp.float32)
        assert stored.serves(x, [panels], axis)
        found = (project if axis == -2 else project_rows)(x, panels)
        close(found, x, matrix if axis == -2 else matrix.T)
        np.testing.assert_array_equal(panels.dense(), dense(made))
        if axis == -1:
            found = take_rows(panels, jnp.array([n - 1, 0]))
            np.testing.assert_array_equal(found, matrix[[n - 1, 0]])


def test_blocks_that_would_grow_too_much_are_not_packed():
    """K-quants' scales of six bits and NVFP4's of eight would be float32 in panels."""
    for format in (
        WeightFormat("uint4", tile_size=32, scale="int8", offset=True, super_tile=256),
        WeightFormat("fp4_e2m1", tile_size=16, scale="float8_e4m3fn", super_tile=0),
    ):
        like = format.abstract((256, 64), jnp.float32, -2)
        assert not packs(jax.tree.map(lambda part: np.zeros(part.shape, part.dtype), like), -2)


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize(("kind", "tile", "symmetric"), FORMS)
def test_products_with_panels_too(kind, tile, symmetric, axis):
    """Rows whose sums stay in registers and more; panels that are full and that are not."""

    @jax.jit
    def computed(x, panels, made, ids):
        found = (project if axis == -2 else project_rows)(x, panels)
        rows = (take_rows(panels, ids), take_rows(made, ids)) if axis == -1 else (ids, ids)
        return found, (panels.dense(), dense(made)), rows

    for rows, k, n in ((1, 64, 96), (2, 192, 37), (3, 64, 5), (4, 128, 64), (7, 64, 130)):
        made = weight(kind, k, n, axis, tile, symmetric)
        x, matrix = jnp.asarray(RNG.normal(size=(rows, k)), jnp.float32), floats(made)
        panels = packed(made, axis)
        assert stored.serves(x, [panels], axis)
        found, *pairs = computed(x, panels, made, np.array([[0, n - 1, 2]]))
        close(found, x, matrix if axis == -2 else matrix.T)
        for of_panels, of_made in pairs:
            np.testing.assert_array_equal(of_panels, of_made)


@pytest.mark.parametrize("kind", ["float32", "int4"])
def test_a_layer_is_read_in_its_stack(kind):
    """In one call with its neighbours, and nothing of the stack is copied."""
    tile = 32 if kind == "int4" else None
    stacks = []
    for n in (64, 40):
        layers = [weight(kind, 64, n, -2, tile, symmetric=False) for _ in range(3)]
        stacks.append((layers, packed(jax.tree.map(lambda *x: jnp.stack(x), *layers), -2)))
    x = jnp.asarray(RNG.normal(size=(2, 64)), jnp.float32)

    @jax.jit
    def products(x, panels, index):
        return project_each(x, [each.layer(index) for each in panels])

    panels = [each for _, each in stacks]
    text = products.lower(x, panels, jnp.int32(1)).as_text()
    assert text.count("@ziggurat_project") == 1
    assert "dynamic_slice" not in text
    for index in range(3):
        found = products(x, panels, jnp.int32(index))
        for y, (layers, each) in zip(found, stacks):
            close(y, x, floats(layers[index]))
            np.testing.assert_array_equal(
                each.layer(jnp.int32(index)).dense(), dense(layers[index])
            )


def test_a_layer_that_is_not_there_is_refused():
    stack = packed(jnp.ones((2, 32, 64)), -2)
    with pytest.raises(jax.errors.JaxRuntimeError, match="project: a weight of another"):
        project(jnp.ones((1, 32)), stack.layer(jnp.int32(2))).block_until_ready()


@pytest.mark.parametrize("kind", ["bfloat16", "int4"])
def test_matrices_that_share_activations_share_a_call(kind):
    tile = 32 if kind == "int4" else None
    kernels = [weight(kind, 64, n, -2, tile) for n in (48, 7, 16)]
    panels = [packed(kernel, -2) for kernel in kernels]
    x = jnp.asarray(RNG.normal(size=(2, 1, 64)), jnp.float32)
    text = jax.jit(project_each).lower(x, panels).as_text()
    assert text.count("@ziggurat_project") == 1
    for found, kernel in zip(project_each(x, panels), kernels):
        close(found.reshape(2, -1), x.reshape(2, -1), floats(kernel))


def test_many_rows_of_a_quantised_weight_are_multiplied_too():
    made, x = weight("int8", 96, 80, -2), jnp.asarray(RNG.normal(size=(70, 96)), jnp.float32)
    close(project(x, made), x, floats(made))


def refused():
    """What is left to the definition, and why."""
    x = jnp.ones((2, 64))
    odd = WeightFormat("int8", tile_size=16)
    activations = WeightFormat("int8", activation="int8")
    eight = weight("int8", 64, 8, -2)
    return {
        "activations of another type": (x.astype(jnp.bfloat16), [eight]),
        "a float matrix that is not packed": (x, [jnp.ones((64, 8))]),
        "a packed one and one that is not": (x, [packed(eight, -2), eight]),
        "a packed table as a kernel": (x, [packed(weight("int8", 64, 8, -1), -1)]),
        "a type without a kernel": (x, [weight("fp8_e4m3", 64, 8, -2)]),
        "small tiles": (x, [QuantizedWeight(eight.qvalue, jnp.ones((4, 8)), None, odd, -2)]),
        "activations to be quantised": (
            x,
            [QuantizedWeight(eight.qvalue, eight.scale, None, activations, -2)],
        ),
        "unlike formats": (x, [eight, weight("int4", 64, 8, -2)]),
        "a float and a quantised one": (x, [jnp.ones((64, 8)), eight]),
        "a table as a kernel": (x, [weight("int8", 8, 64, -1)]),
        "a stack": (x, [jnp.ones((2, 64, 8))]),
    }


def test_what_has_no_kernel_is_left_to_the_definition():
    for why, (x, weights) in refused().items():
        assert not stored.serves(x, weights, -2), why


def test_what_does_not_fit_panels_is_not_packed():
    for kind, k, tile in (("float32", 48, None), ("int8", 64, 16), ("fp8_e4m3", 64, None)):
        assert not packs(weight(kind, k, 8, -2, tile), -2)
    assert not packs(weight("int8", 64, 64, -2), -1)
    adapted = LoraWeight(jnp.ones((64, 64)), jnp.ones((64, 2)), jnp.ones((2, 64)), 1.0)
    assert not packs(adapted, -2)


@pytest.mark.parametrize("kind", ["float32", "int8", "int4"])
def test_programs_for_elsewhere_hold_no_call(kind):
    made, x = weight(kind, 64, 8, -2, 32 if kind == "int4" else None), jnp.ones((1, 64))
    made, matrix = packed(made, -2), floats(made)
    traced = jax.jit(project).trace(x, made)
    assert "@ziggurat" not in traced.lower(lowering_platforms=("tpu",)).as_text()
    exported = jax.export.export(jax.jit(project), platforms=("cpu",))(x, made)
    assert "@ziggurat" not in exported.mlir_module()
    expected = np.ones((1, 64)) @ matrix
    np.testing.assert_allclose(exported.call(x, made), expected, rtol=1e-5, atol=1e-3)


def test_without_the_library_results_are_the_same(monkeypatch):
    made, x = weight("int8", 64, 24, -1), jnp.asarray(RNG.normal(size=(3, 64)), jnp.float32)
    made = packed(made, -1)
    found = project_rows(x, made)
    monkeypatch.setattr(stored, "usable", lambda name, *arrays: False)
    np.testing.assert_allclose(found, project_rows(x, made), rtol=1e-5, atol=1e-3)


@pytest.mark.slow
def test_gradients_and_maps_are_the_definitions():
    x, w = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((2, 3, 6), (6, 4)))

    def loss(x, w, implementation):
        return (project(x, w, implementation=implementation) ** 2).sum()

    for found, expected in zip(
        jax.grad(loss, (0, 1))(x, w, "auto"), jax.grad(loss, (0, 1))(x, w, "flat")
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    mapped = jax.vmap(project, in_axes=(0, None))(x, w)
    np.testing.assert_allclose(mapped, project(x, w, implementation="flat"), atol=1e-5)
