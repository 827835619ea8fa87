"""Config of optimizers, schedules and the loss. Imports no JAX."""

import abc
import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Discriminator, Tag

from ziggurat.core import config
from ziggurat.core.kinds import Kinds
from ziggurat.core.registry import Registry

if TYPE_CHECKING:
    import optax

NO_DECAY = ("*norm*", "*bias*", "*embed*")
"""Parameters that are not decayed by default, as patterns over dotted names."""
ADAM_PATTERNS = ("*norm*", "*bias*", "*embed*", "*router*")
"""Parameters that Muon leaves to AdamW by default."""


def _fraction(key: str, value: float) -> None:
    config.require(0 <= value <= 1, key, value, "a fraction from 0 to 1")


def _coefficient(key: str, value: float) -> None:
    config.require(0 <= value < 1, key, value, "a number from 0 to below 1")


def _not_negative(key: str, value: float | int) -> None:
    config.require(value >= 0, key, value, "0 or more")


def _positive(key: str, value: float) -> None:
    config.require(value > 0, key, value, "a positive number")


@config.node
class _Warmup:
    warmup_steps: int = 0
    """Steps of linear warm-up: step s (from 0) runs at (s + 1) / warmup_steps of the peak."""

    def __post_init__(self):
        _not_negative("warmup_steps", self.warmup_steps)


@config.node
class _Decaying(_Warmup):
    final_fraction: float = 0.0
    """Learning rate at the end, as a fraction of the peak."""

    def __post_init__(self):
        super().__post_init__()
        _fraction("final_fraction", self.final_fraction)


@config.node
class _Ending(_Decaying):
    steps: int | None = None
    """Steps over which the learning rate moves, warm-up included. Default: train.steps when the run
    begins, and kept when train.steps is changed later."""

    def __post_init__(self):
        super().__post_init__()
        config.require(self.steps is None or self.steps >= 1, "steps", self.steps, "1 or more")


@config.node
class Constant(_Warmup):
    """Schedule that stays at the peak after the warm-up."""

    kind: Literal["constant"] = "constant"


@config.node
class LinearDecay(_Ending):
    """Schedule that falls in a straight line from the peak to the end."""

    kind: Literal["linear"] = "linear"


@config.node
class Cosine(_Ending):
    """Schedule that falls along half a cosine from the peak to the end."""

    kind: Literal["cosine"] = "cosine"


@config.node
class WarmupStableDecay(_Ending):
    """Schedule that stays at the peak and falls in a short decay at the end (WSD)."""

    kind: Literal["wsd"] = "wsd"
    decay_fraction: float = 0.1
    """Length of the final decay, as a fraction of all steps."""
    decay_shape: Literal["linear", "sqrt", "cosine"] = "linear"
    """Shape of the decay; sqrt is 1 - sqrt(progress)."""

    def __post_init__(self):
        super().__post_init__()
        _fraction("decay_fraction", self.decay_fraction)


@config.node
class InverseSqrt(_Decaying):
    """Schedule of the peak times sqrt(warmup_steps / step), never below final_fraction of the
    peak."""

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"

    def __post_init__(self):
        super().__post_init__()
        config.require(self.warmup_steps > 0, "warmup_steps", self.warmup_steps, "1 or more")


ScheduleConfig = Annotated[
    Annotated[Constant, Tag("constant")]
    | Annotated[LinearDecay, Tag("linear")]
    | Annotated[Cosine, Tag("cosine")]
    | Annotated[WarmupStableDecay, Tag("wsd")]
    | Annotated[InverseSqrt, Tag("inverse_sqrt")],
    Discriminator(config.kind_or("cosine")),
]
"""How the learning rate moves over the run; a table without ``kind`` is a cosine."""


@config.node
class OptimizerNode:
    """Settings that all optimizers have."""

    lr: float
    """Peak learning rate."""
    schedule: ScheduleConfig = dataclasses.field(default_factory=Cosine)
    """How the learning rate moves over the run."""
    weight_decay: float = 0.0
    """Strength of the weight decay, before multiplication with the learning rate."""
    no_decay: tuple[str, ...] = NO_DECAY
    """Patterns (*, ?, [..]) over dotted parameter names that are not decayed; parameters with fewer
    than two dimensions (stacked layers and experts not counted) never are."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient; a larger one is scaled down to it. inf: no clipping."""

    def __post_init__(self):
        _positive("lr", self.lr)
        _not_negative("weight_decay", self.weight_decay)
        _positive("clip_norm", self.clip_norm)


@config.node
class AdamW(OptimizerNode):
    """Adam with decoupled weight decay."""

    kind: Literal["adamw"] = "adamw"
    weight_decay: float = 0.1
    """Strength of the weight decay, before multiplication with the learning rate."""
    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.95
    """Decay of the mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    nesterov: bool = False
    """Look one step ahead in the first moment (NAdamW)."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the first moment is kept."""

    def __post_init__(self):
        super().__post_init__()
        _coefficient("beta1", self.beta1)
        _coefficient("beta2", self.beta2)
        _positive("eps", self.eps)


@config.node
class Lion(OptimizerNode):
    """Sign of an interpolated momentum; use a learning rate 3 to 10 times below AdamW's."""

    kind: Literal["lion"] = "lion"
    weight_decay: float = 0.1
    """Strength of the weight decay, before multiplication with the learning rate."""
    beta1: float = 0.9
    """Weight of the momentum in the update."""
    beta2: float = 0.99
    """Decay of the momentum."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the momentum is kept."""

    def __post_init__(self):
        super().__post_init__()
        _coefficient("beta1", self.beta1)
        _coefficient("beta2", self.beta2)


@config.node
class Muon(OptimizerNode):
    """Orthogonalised momentum for matrices, AdamW for everything else."""

    kind: Literal["muon"] = "muon"
    weight_decay: float = 0.1
    """Strength of the weight decay, before multiplication with the learning rate."""
    momentum: float = 0.95
    """Decay of the momentum of matrices."""
    nesterov: bool = True
    """Look one step ahead in the momentum of matrices."""
    iterations: int = 5
    """Newton-Schulz iterations."""
    update_rms: float = 0.2
    """Root mean square of a matrix's update at lr 1; 0.2 is what AdamW has, so that its learning
    rates carry over. 0: scale by sqrt(max(1, outputs / inputs)) instead, as first published."""
    adam_patterns: tuple[str, ...] = ADAM_PATTERNS
    """Patterns over dotted names of parameters left to AdamW, beside those with a vocabulary
    dimension (embeddings, output layer) and those that are not matrices."""
    adam_lr: float | None = None
    """Peak learning rate of the AdamW part; the same as lr when not given."""
    beta1: float = 0.9
    """AdamW part: decay of the mean of gradients."""
    beta2: float = 0.95
    """AdamW part: decay of the mean of squared gradients."""
    eps: float = 1e-8
    """AdamW part: added to the root of the second moment."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which momenta are kept."""

    def __post_init__(self):
        super().__post_init__()
        for key in ("momentum", "beta1", "beta2"):
            _coefficient(key, getattr(self, key))
        _positive("eps", self.eps)
        _not_negative("update_rms", self.update_rms)
        config.require(self.iterations >= 1, "iterations", self.iterations, "1 or more")
        if self.adam_lr is not None:
            _positive("adam_lr", self.adam_lr)


@config.node
class Adafactor(OptimizerNode):
    """Adam's second moment as a row and a column per matrix."""

    kind: Literal["adafactor"] = "adafactor"
    decay_exponent: float = 0.8
    """The second moment decays by 1 - t^-decay_exponent at step t (from 1)."""
    min_dim_to_factor: int = 128
    """Matrices with a smaller dimension keep the full second moment."""
    update_clip: float = 1.0
    """Largest root mean square of a parameter's update before the learning rate. inf: none."""
    scale_by_parameter: bool = True
    """Multiply the update by the root mean square of the parameter (at least 1e-3), which makes lr
    a relative step."""
    momentum: float = 0.0
    """Decay of a mean of updates; 0 keeps none and saves its memory."""
    eps: float = 1e-30
    """Added to squared gradients."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the mean of updates is kept."""

    def __post_init__(self):
        super().__post_init__()
        config.require(
            0 < self.decay_exponent <= 1, "decay_exponent", self.decay_exponent, "above 0, up to 1"
        )
        config.require(
            self.min_dim_to_factor >= 1, "min_dim_to_factor", self.min_dim_to_factor, "1 or more"
        )
        config.require(self.update_clip >= 1, "update_clip", self.update_clip, "1 or more, or inf")
        _coefficient("momentum", self.momentum)
        _positive("eps", self.eps)


@config.node
class Sgd(OptimizerNode):
    """Stochastic gradient descent with momentum; weight decay is added to the gradient."""

    kind: Literal["sgd"] = "sgd"
    momentum: float = 0.0
    """Decay of the sum of gradients; 0 keeps none and saves its memory."""
    nesterov: bool = False
    """Look one step ahead in the momentum."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the momentum is kept."""

    def __post_init__(self):
        super().__post_init__()
        _coefficient("momentum", self.momentum)
        config.require(
            self.momentum > 0 or not self.nesterov, "nesterov", True, "false without momentum"
        )


@config.node
class CustomOptimizer(OptimizerNode, abc.ABC):
    """Base of optimizers from other packages: settings are fields, the update is :meth:`rule`.

    Gradients arrive clipped to ``clip_norm``. Register the class with ``OPTIMIZERS``.
    """

    kind: str

    @abc.abstractmethod
    def rule(
        self, schedule: "optax.Schedule", decay: "optax.GradientTransformation"
    ) -> "optax.GradientTransformation":
        """Build the transformation of gradients to updates.

        Args:
            schedule: learning rate by step.
            decay: adds the weight decay to those parameters that are decayed.
        """


OPTIMIZERS: Registry[type[OptimizerNode]] = Registry("optimizer.kind")
"""Nodes of ``[optimizer]`` by kind."""
for _node in (AdamW, Lion, Muon, Adafactor, Sgd):
    OPTIMIZERS.add(_node.kind, _node)

OptimizerConfig = Annotated[
    AdamW | Lion | Muon | Adafactor | Sgd | CustomOptimizer, Kinds(OPTIMIZERS)
]
"""The optimizer of a run."""


@config.node
class LossConfig:
    """Settings of the next-token loss."""

    z_loss: float = 0.0
    """Coefficient of the squared log-normaliser, e.g. 1e-4; keeps logits from drifting."""
    chunk_tokens: int = 1024
    """Tokens whose logits exist at once, over all devices together."""
    implementation: str = "auto"
    """Kernel of the output layer and loss: auto, chunked or reference."""

    load_balancing: float = 0.0
    """Coefficient of the load-balancing loss of routers, e.g. 0.01 (mixtures of experts)."""
    router_z_loss: float = 0.0
    """Coefficient of the squared log-normaliser of routers, e.g. 1e-3."""
    router_bias_rate: float = 0.0
    """How far a step moves the bias by which a router corrects its choice, against each expert's
    load, e.g. 1e-3 (DeepSeek-V3, balancing without a loss)."""

    def __post_init__(self):
        for key in ("z_loss", "load_balancing", "router_z_loss", "router_bias_rate"):
            _not_negative(key, getattr(self, key))
        config.require(self.chunk_tokens >= 1, "chunk_tokens", self.chunk_tokens, "1 or more")
