"""A small tree of parameters as a decoder has them: layers stacked, axes named."""

import jax
import jax.numpy as jnp
import numpy as np

from ziggurat.optim import is_axes

AXES = {
    "blocks": {
        "attention": {
            "output": {"kernel": ("layers", "heads", "head_dim", "embed")},
            "query": {"bias": ("layers", "heads"), "kernel": ("layers", "embed", "heads")},
        },
        "mlp": {"up": {"kernel": ("layers", "embed", "mlp")}},
        "moe": {
            "down": {"kernel": ("layers", "experts", "mlp", "embed")},
            "router": {"kernel": ("layers", "embed", "experts")},
        },
        "norm": {"scale": ("layers", "embed")},
    },
    "embed": {"table": ("vocab", "embed")},
    "final_norm": {"scale": ("embed",)},
    "head": {"kernel": ("vocab", "embed")},
}
SIZES = {
    "layers": 3,
    "embed": 8,
    "heads": 4,
    "head_dim": 2,
    "mlp": 16,
    "experts": 2,
    "vocab": 12,
}


def parameters(seed=0, axes=AXES, sizes=SIZES):
    """Random parameters for an axes tree."""
    leaves, tree = jax.tree.flatten(axes, is_leaf=is_axes)
    draw = np.random.default_rng(seed)
    arrays = [
        jnp.asarray(draw.normal(size=tuple(sizes[a] for a in leaf)), jnp.float32) for leaf in leaves
    ]
    return jax.tree.unflatten(tree, arrays)


def gradients(steps):
    """One tree of gradients per step, different from each other and of different size."""
    return [
        jax.tree.map(lambda x, s=step: x * 0.1 * (s + 1), parameters(100 + step))
        for step in range(steps)
    ]
