"""How weights are rounded to a format, and the text that calibrates it. No JAX here."""

from typing import Literal

from ziggurat.core import config

Method = Literal["rtn", "mse", "gptq"]
"""``rtn``: each weight to the nearest value, scales from the largest magnitude. ``mse``: to the
nearest, scales from a search for the least squared error. ``gptq``: one input after another, the
error of each made up for by the inputs that follow."""
CALIBRATED = ("gptq",)
"""Methods that need text."""


@config.node
class Rounding:
    """How weights are rounded."""

    method: Method = "rtn"
    """Method of rounding."""
    damping: float = 0.01
    """GPTQ: share of the mean of the Hessian's diagonal that is added to it."""
    activation_order: bool = True
    """GPTQ: round the inputs with the largest second moment first. Scales are fixed before, so the
    stored order of inputs stays as it is."""

    def __post_init__(self):
        in_range = 1e-4 <= self.damping <= 1
        config.require(in_range, "damping", self.damping, "a share from 1e-4 to 1")


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
