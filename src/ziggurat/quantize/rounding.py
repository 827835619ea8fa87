"""How weights are rounded to a format, and the text that calibrates it. No JAX here.

>>> METHODS["gptq"].calibrated, METHODS["mse"].calibrated
(True, False)
"""

import dataclasses
import importlib
from typing import Any

from ziggurat.core import config
from ziggurat.core.registry import Registry

_HERE = "ziggurat.quantize"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundingMethod:
    """Record of a method: its functions, and the settings of :class:`Rounding` that it reads."""

    summary: str
    """A line for help."""
    search: bool = False
    """Without calibration: whether scales are searched for, of the least squared error."""
    round: str | None = None
    """``module:function`` that rounds a matrix for its inputs, see
    :class:`ziggurat.quantize.calibrated.RoundMatrix`; ``None``: the method needs no text."""
    fold: str | None = None
    """``module:function`` that gives each input's factor, see
    :class:`ziggurat.quantize.folding.FindFactors`: matrices are multiplied by it before they are
    rounded, and what comes before them is divided by it. ``None``: no factors."""
    folds_projections: bool = False
    """Whether factors are folded into projections too, and not into norms alone."""
    settings: tuple[str, ...] = ()
    """Fields of :class:`Rounding` that it reads."""

    @property
    def calibrated(self) -> bool:
        """Whether the method needs text."""
        return self.round is not None


METHODS: Registry[RoundingMethod] = Registry("rounding method")
"""Methods by name."""
METHODS.add("rtn", RoundingMethod(summary="each weight to the nearest value"))
METHODS.add(
    "mse",
    RoundingMethod(summary="to the nearest value, scales of the least squared error", search=True),
)
METHODS.add(
    "gptq",
    RoundingMethod(
        summary="the inputs that follow make up for each error",
        round=f"{_HERE}.gptq:round_matrix",
        settings=("damping", "activation_order"),
    ),
)
METHODS.add(
    "awq",
    RoundingMethod(
        summary="inputs with large activations are scaled up first",
        round=f"{_HERE}.awq:round_matrix",
        fold=f"{_HERE}.awq:factors",
        folds_projections=True,
    ),
)
METHODS.add(
    "smoothquant",
    RoundingMethod(
        summary="outliers move from activations into weights; for quantised activations",
        round=f"{_HERE}.smoothquant:round_matrix",
        fold=f"{_HERE}.smoothquant:factors",
        settings=("smoothing",),
    ),
)
METHODS.add(
    "autoround",
    RoundingMethod(
        summary="rounding and clipping are learned by SignSGD",
        round=f"{_HERE}.autoround:round_matrix",
        settings=("iterations",),
    ),
)


def function_of(home: str) -> Any:
    """The function that a record names as ``module:function``."""
    module, _, name = home.partition(":")
    return getattr(importlib.import_module(module), name)


@config.node
class Rounding:
    """How weights are rounded."""

    method: str = "rtn"
    """Method of rounding: rtn, mse, gptq, awq, smoothquant, autoround, or one that a plugin
    registers."""
    damping: float = 0.01
    """GPTQ: share of the mean of the Hessian's diagonal that is added to it."""
    activation_order: bool = True
    """GPTQ: round the inputs with the largest second moment first. Scales are fixed before, so the
    stored order of inputs stays as it is."""
    smoothing: float = 0.5
    """SmoothQuant: share of the outliers that moves from activations into weights."""
    iterations: int = 200
    """AutoRound: steps of SignSGD for each matrix; the rate falls from 1 / iterations to 0."""

    def __post_init__(self):
        known = self.method in METHODS
        listed = "" if known else f"one of {', '.join(METHODS)}"
        config.require(known, "method", self.method, listed)
        in_range = 1e-4 <= self.damping <= 1
        config.require(in_range, "damping", self.damping, "a share from 1e-4 to 1")
        share = 0 <= self.smoothing <= 1
        config.require(share, "smoothing", self.smoothing, "a share from 0 to 1")
        config.require(self.iterations >= 1, "iterations", self.iterations, "1 or more")
        read = METHODS[self.method].settings
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            unused = value != field.default and field.name not in read
            config.require(
                not unused, field.name, value, f"nothing: {self.method} has no such setting"
            )


@config.node
class Calibration:
    """Text that shows which inputs the matrices of a model get."""

    path: str
    """UTF-8 text, JSON lines (field ``text``) or Parquet (column ``text``): a file, or a directory
    of text files."""
    tokens: int = 32768
    """Tokens to calibrate on."""
    length: int = 512
    """Tokens of one row."""
    seed: int = 0
    """Which rows of the text are drawn."""

    def __post_init__(self):
        config.require(bool(self.path), "path", self.path, "a file or directory")
        config.require(self.tokens >= 1, "tokens", self.tokens, "1 or more")
        config.require(self.length >= 1, "length", self.length, "1 or more")
