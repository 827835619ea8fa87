"""FLOP counts against an independent count and a published figure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ziggurat.core.errors import ConfigError
from ziggurat.profile import flops


def test_palm_540b_reproduces_the_published_mfu():
    # PaLM table 3 and section 4: 540.35B parameters, 118 layers, 48 heads of 256, t = 2048,
    # 238.3K tokens/s on 6144 TPU v4 at 275 TFLOP/s give 46.2% (45.7% without attention).
    count = flops.training_flops_per_token(
        540_350_000_000, layers=118, heads=48, head_dim=256, sequence=2048
    )
    assert flops.mfu(238_300, count, 6144, 275e12) == pytest.approx(0.462, abs=5e-4)


def test_forward_count_equals_xla_for_one_layer():
    t, h, c, f = 32, 4, 16, 128
    d = h * c

    def layer(x, qkv, o, up, down):
        q, k, v = (jnp.einsum("td,dhc->thc", x, w) for w in qkv)
        mixed = jnp.einsum("hts,shc->thc", jnp.einsum("thc,shc->hts", q, k), v)
        x = jnp.einsum("thc,hcd->td", mixed, o)
        return x @ up @ down

    shapes = [(t, d), (3, d, h, c), (h, c, d), (d, f), (f, d)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    cost = jax.jit(layer).lower(*arguments).cost_analysis()
    assert cost is not None
    parameters = sum(int(np.prod(shape)) for shape in shapes[1:])
    ours = flops.forward_flops_per_token(parameters, layers=1, heads=h, head_dim=c, keys=t)
    assert t * ours == pytest.approx(cost["flops"], rel=0.01)


@pytest.mark.parametrize(("t", "window"), [(1, None), (7, None), (7, 3), (7, 7), (7, 9), (5, 1)])
def test_mean_keys_counts_the_mask(t, window):
    i, j = np.indices((t, t))
    mask = (j <= i) & (i - j < (window or t))
    assert flops.mean_keys(t, window=window) == pytest.approx(mask.sum() / t)


def test_causal_halves_only_attention():
    full, causal = (
        flops.training_flops_per_token(
            10, layers=2, heads=3, head_dim=4, sequence=1001, causal=causal
        )
        - 60
        for causal in (False, True)
    )
    assert causal / full == pytest.approx(1002 / 2002)


def test_errors_and_unknown_peak():
    assert flops.mfu(1.0, 1.0, 1, None) is None
    with pytest.raises(ConfigError, match="chips: found 0"):
        flops.mfu(1.0, 1.0, 0, 1e12)
    with pytest.raises(ConfigError, match="window: found 0"):
        flops.mean_keys(8, window=0)
