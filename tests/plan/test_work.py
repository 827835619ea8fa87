"""FLOPs and traffic against arithmetic: products, scans, remat, kernels, fusion, sharded bodies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import Mesh, PartitionSpec

from ziggurat.core.errors import PlanError
from ziggurat.kernels.attention import AttentionMask, attention
from ziggurat.kernels.grouped_matmul import grouped_matmul
from ziggurat.plan.work import operations, total_flops


def shape(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def work(function, *args):
    return operations(jax.jit(function).trace(*args).jaxpr)


def traffic(found, kind=None):
    return sum(o.bytes * o.count for o in found if kind in (None, o.kind))


M, K, N, L = 4, 6, 8, 5


def test_a_product_with_batch_dimensions():
    found = work(lambda a, b: jnp.einsum("bmk,bkn->bmn", a, b), shape(3, M, K), shape(3, K, N))
    assert total_flops(found) == 2 * 3 * M * K * N
    assert traffic(found) == 4 * 3 * (M * K + K * N + M * N)


def test_a_convolution():
    def convolve(x, w):
        names = ("NWC", "WIO", "NWC")
        return jax.lax.conv_general_dilated(x, w, (1,), "VALID", dimension_numbers=names)

    assert total_flops(work(convolve, shape(2, 10, 3), shape(4, 3, 7))) == 2 * 2 * 7 * 7 * 4 * 3


def test_ragged_products_and_their_gradients():
    """Each row meets one group's matrix, forwards and in both gradients."""
    rows, width, hidden, groups = 12, K, N, 3
    sizes = jnp.array([4, 4, 4], jnp.int32)

    def loss(x, w):
        return (jax.lax.ragged_dot(x, w, sizes) ** 2).sum()

    args = shape(rows, width), shape(groups, width, hidden)
    one = 2 * rows * width * hidden
    assert total_flops(work(loss, *args)) == one
    assert total_flops(work(jax.grad(loss, argnums=(0, 1)), *args)) == pytest.approx(3 * one)


def layers(policy):
    def layer(x, w):
        return jnp.tanh(x @ w), None

    body = layer if policy is None else jax.checkpoint(layer, policy=policy)

    def loss(x, w):
        return jax.lax.scan(body, x, w)[0].sum()

    return jax.grad(loss, argnums=(0, 1)), shape(M, K), shape(L, K, K)


def test_a_scan_counts_as_often_as_it_runs_and_remat_repeats():
    one = L * 2 * M * K * K
    plain, *args = layers(None)
    assert total_flops(work(plain, *args)) == 3 * one
    full, *args = layers(jax.checkpoint_policies.nothing_saveable)
    assert total_flops(work(full, *args)) == 4 * one
    dots, *args = layers(jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    assert total_flops(work(dots, *args)) == 3 * one


def test_of_branches_the_dearest_counts():
    def choose(flag, x, w):
        return jax.lax.cond(flag, lambda: x @ w, lambda: x * 2)

    args = shape(dtype=jnp.bool_), shape(M, K), shape(K, K)
    assert total_flops(work(choose, *args)) == 2 * M * K * K


def test_element_wise_work_between_products_is_one_pass():
    """norm-like: read x, write y; then the product's own traffic; then read y's product and x."""
    n = 128

    def block(x, w):
        y = jnp.tanh(x) * 2 + 1
        return y @ w + x

    found = work(block, shape(n, n), shape(n, n))
    assert traffic(found, "matmul") == 4 * 3 * n * n
    assert traffic(found, "memory-bound") == 4 * (2 + 3) * n * n


def test_scopes_name_the_kinds():
    def step(x, w):
        with jax.named_scope("attend"):
            y = x @ w
        with jax.named_scope("optimizer"):
            return y, w - 0.1 * w

    found = work(step, shape(M, K), shape(K, K))
    assert total_flops(found, "attention") == 2 * M * K * K
    assert traffic(found, "optimizer") == 4 * 2 * K * K


def test_a_body_on_every_device_counts_on_each():
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    rows = PartitionSpec("x")
    local = jax.shard_map(
        lambda a, b: a @ b, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows
    )
    assert total_flops(work(local, shape(4 * M, K), shape(K, N))) == 2 * 4 * M * K * N


def test_kernels_by_their_own_estimate_or_by_body_and_grid():
    def kernel(x, w, out):
        out[...] = jnp.dot(x[...], w[...])

    def call(x, w, **options):
        return pl.pallas_call(
            kernel,
            grid=(2,),
            in_specs=[
                pl.BlockSpec((M, K), lambda i: (i, 0)),
                pl.BlockSpec((K, N), lambda i: (0, 0)),
            ],
            out_specs=pl.BlockSpec((M, N), lambda i: (i, 0)),
            out_shape=shape(2 * M, N),
            **options,
        )(x, w)

    args = shape(2 * M, K), shape(K, N)
    assert total_flops(work(call, *args)) == 2 * 2 * M * K * N
    estimate = pl.CostEstimate(flops=123, bytes_accessed=45, transcendentals=0)
    found = work(lambda x, w: call(x, w, cost_estimate=estimate), *args)
    assert (total_flops(found), traffic(found)) == (123, 45)


@pytest.mark.parametrize("window", [None, 512])
def test_splash_counts_the_blocks_that_a_mask_leaves(window):
    """Forwards two products, backwards seven (the scores twice anew), of 3 + 2 + 1 blocks of 512
    below the diagonal; under a window of one block 3 + 2, and one that the kernel's grid has more.
    """
    b, t, h, c, block = 1, 1536, 2, 64, 512
    positions = jnp.arange(t)[None]
    mask = AttentionMask(positions, positions, aligned=True, window=window)

    def loss(q, k, v):
        return attention(q, k, v, mask, scale=1.0, implementation="splash").sum()

    args = [shape(b, t, h, c)] * 3
    one = 2 * b * h * c * block * block
    blocks = 6
    both = work(jax.grad(loss, argnums=(0, 1, 2)), *args)
    kernels = [o for o in both if o.name.startswith("splash")]
    assert len(kernels) == 3
    assert total_flops(work(loss, *args), "attention") == 2 * blocks * one
    assert total_flops(kernels, "attention") == 9 * blocks * one


@pytest.mark.parametrize(
    ("start", "stop", "step", "turns"), [(0, 7, 1, 7), (1, 8, 2, 4), (5, 5, 1, 0)]
)
def test_a_loop_counts_by_its_counter(start, stop, step, turns):
    def program(x):
        def turn(carry):
            return carry[0] + step, carry[1] @ carry[1]

        return jax.lax.while_loop(lambda carry: carry[0] < stop, turn, (start, x))[1]

    assert total_flops(work(program, shape(K, K))) == turns * 2 * K**3


def test_a_loop_that_only_the_device_knows_says_how_often_it_runs_or_is_refused():
    def program(x, n):
        return jax.lax.fori_loop(0, n, lambda _, y: y @ y, x)

    def declared(x, n):
        with jax.named_scope("trips_5"):
            return program(x, n)

    args = shape(K, K), shape(dtype=jnp.int32)
    assert total_flops(work(declared, *args)) == 5 * 2 * K**3
    with pytest.raises(PlanError, match="a number of turns that only the device knows"):
        work(program, *args)

    def moves(x, n):
        return jax.lax.fori_loop(0, n, lambda _, y: y + 1, x)

    assert total_flops(work(moves, *args)) == 0


@pytest.mark.parametrize("implementation", ["ragged", "blocked"])
@pytest.mark.parametrize("parts", [1, 4])
def test_grouped_products_count_alike_whatever_computes_them(implementation, parts):
    """Forwards one product and backwards two, of the rows that have their expert here."""
    rows, groups = 4096, 4

    def loss(x, w, sizes):
        with jax.named_scope(f"share_1_in_{parts}"):
            return (grouped_matmul(x, w, sizes, implementation=implementation) ** 2).sum()

    args = shape(rows, K), shape(groups, K, N), shape(groups, dtype=jnp.int32)
    one = 2 * rows * K * N / parts
    found = total_flops(work(jax.grad(loss, argnums=(0, 1)), *args))
    # blocks at the end of a group are not full
    assert 3 * one <= found < 1.15 * 3 * one
