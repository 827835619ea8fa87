"""Optimizers, schedules and losses, declared once in the run file and built on Optax.

The run file's nodes are in :mod:`ziggurat.optim.config`, which imports no JAX; everything else here
is imported when first used.

>>> from ziggurat import optim
>>> axes = {"embed": {"table": ("vocab", "embed")}, "mlp": {"kernel": ("layers", "embed", "mlp")}}
>>> optimizer = optim.build(optim.AdamW(lr=1e-3), total_steps=100, axes=axes)
>>> [(row.name, row.decayed) for row in optimizer.describe()]
[('embed.table', False), ('mlp.kernel', True)]
"""

from typing import TYPE_CHECKING

from ziggurat.core import lazy
from ziggurat.optim.config import (
    OPTIMIZERS,
    Adafactor,
    AdamW,
    Constant,
    Cosine,
    CustomOptimizer,
    InverseSqrt,
    LinearDecay,
    Lion,
    LossConfig,
    Muon,
    OptimizerConfig,
    OptimizerNode,
    ScheduleConfig,
    Sgd,
    WarmupStableDecay,
)

if TYPE_CHECKING:
    from ziggurat.optim.clipping import clip_by_norm, global_norm
    from ziggurat.optim.groups import Treatment, is_axes
    from ziggurat.optim.losses import LossMetrics, next_token_loss
    from ziggurat.optim.master_weights import MasterState
    from ziggurat.optim.optimizers import Optimizer, build, from_optax
    from ziggurat.optim.schedules import build_schedule
    from ziggurat.optim.state_sharding import state_axes

_LAZY = {
    "LossMetrics": "losses",
    "MasterState": "master_weights",
    "Optimizer": "optimizers",
    "Treatment": "groups",
    "build": "optimizers",
    "build_schedule": "schedules",
    "clip_by_norm": "clipping",
    "from_optax": "optimizers",
    "global_norm": "clipping",
    "is_axes": "groups",
    "next_token_loss": "losses",
    "state_axes": "state_sharding",
}

__all__ = [
    "OPTIMIZERS",
    "Adafactor",
    "AdamW",
    "Constant",
    "Cosine",
    "CustomOptimizer",
    "InverseSqrt",
    "LinearDecay",
    "Lion",
    "LossConfig",
    "LossMetrics",
    "MasterState",
    "Muon",
    "Optimizer",
    "OptimizerConfig",
    "OptimizerNode",
    "ScheduleConfig",
    "Sgd",
    "Treatment",
    "WarmupStableDecay",
    "build",
    "build_schedule",
    "clip_by_norm",
    "from_optax",
    "global_norm",
    "is_axes",
    "next_token_loss",
    "state_axes",
]


__getattr__, __dir__ = lazy.names(__name__, _LAZY)
