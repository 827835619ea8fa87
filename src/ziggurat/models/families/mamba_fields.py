"""Config fields, ``config.json`` keys and weight names of families with Mamba-2 layers."""

from typing import Any

from ziggurat.core import config
from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.block_names import LAYER, Layers
from ziggurat.models.conversion.hf_config import HFConfig, activation
from ziggurat.models.conversion.weight_names import AxisSlice, WeightName
from ziggurat.nn.mamba2 import Mamba2Config
from ziggurat.nn.mlp import Activation

INFINITY = {"__float__": "Infinity"}
"""A float without end as transformers writes it; JSON has none."""
PROJECTIONS = ("gate", "value", "key", "query", "step")
"""Parts of the published input projection, in order."""


@config.node
class MambaFields:
    """Dimensions and switches of Mamba-2 layers."""

    mamba_heads: int | None = None
    """Heads; default two widths of channels, ``2 d_model / mamba_head_dim``."""
    mamba_head_dim: int = 64
    """Channels of one head."""
    mamba_groups: int = 1
    """Groups of heads that share what writes to the state and reads it."""
    mamba_state_dim: int = 128
    """Size of the state for each channel of a head."""
    mamba_taps: int = 4
    """Tokens that the convolutions see."""
    mamba_activation: Activation = "silu"
    """Function behind the convolutions."""
    mamba_bias: bool = False
    """Biases on the input and output projections."""
    mamba_convolution_bias: bool = True
    """Biases of the convolutions."""
    step_min: float = 0.0
    """Smallest step size of time."""
    step_max: float | None = None
    """Largest step size; default none."""
    initial_steps: tuple[float, float] = (1e-3, 0.1)
    """Step sizes that a fresh model starts from, smallest and largest."""

    def require_mamba(self, width: int) -> None:
        """Refuse dimensions that do not fit a model of this width.

        Raises:
            ConfigError: a number is none, or heads do not divide as they must.
        """
        for name in ("mamba_head_dim", "mamba_groups", "mamba_state_dim", "mamba_taps"):
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")
        heads = self.heads_of(width)
        config.require(heads >= 1, "mamba_heads", heads, "a number >= 1")
        fits = heads % self.mamba_groups == 0
        config.require(fits, "mamba_groups", self.mamba_groups, f"a divisor of {heads} heads")
        low, high = self.step_min, self.step_max
        config.require(low >= 0, "step_min", low, "a number >= 0")
        config.require(high is None or high >= low, "step_max", high, f"at least step_min = {low}")
        first, last = self.initial_steps
        fits = 0 < first <= last
        config.require(fits, "initial_steps", (first, last), "0 < smallest <= largest")

    def heads_of(self, width: int) -> int:
        """Number of heads: ``mamba_heads``, by default as many as fill twice ``width``."""
        if self.mamba_heads is not None:
            return self.mamba_heads
        return 2 * width // self.mamba_head_dim

    def mamba(self, width: int, norm_eps: float) -> Mamba2Config:
        """Mamba-2 layers of these dimensions."""
        return Mamba2Config(
            heads=self.heads_of(width),
            head_dim=self.mamba_head_dim,
            groups=self.mamba_groups,
            state_dim=self.mamba_state_dim,
            taps=self.mamba_taps,
            norm_eps=norm_eps,
            step_limits=(self.step_min, self.step_max),
            initial_steps=self.initial_steps,
            activation=self.mamba_activation,
            bias=self.mamba_bias,
            convolution_bias=self.mamba_convolution_bias,
        )


def read_step_limits(hf: HFConfig) -> dict[str, Any]:
    """``time_step_limit`` as config fields.

    Raises:
        ModelError: it is no pair of numbers.
    """
    limits = hf.get("time_step_limit")
    numbers = isinstance(limits, (list, tuple)) and all(
        limit == INFINITY or isinstance(limit, (int, float)) for limit in limits
    )
    if not numbers or len(limits) != 2:
        expected = "the smallest and the largest step size"
        raise ModelError("config.json: time_step_limit", found=repr(limits), expected=expected)
    low, high = (float("inf") if limit == INFINITY else float(limit) for limit in limits)
    return {"step_min": low, "step_max": None if high == float("inf") else high}


def hf_step_limits(settings: MambaFields) -> list[Any]:
    """The reverse of :func:`read_step_limits`."""
    high = settings.step_max
    return [settings.step_min, INFINITY if high is None else high]


HYBRID = {
    "mamba_heads": "mamba_n_heads",
    "mamba_groups": "mamba_n_groups",
    "mamba_state_dim": "mamba_d_state",
    "mamba_taps": "mamba_d_conv",
    "mamba_bias": "mamba_proj_bias",
    "mamba_convolution_bias": "mamba_conv_bias",
}
"""Config fields and keys of one value, in models with attention beside Mamba-2."""


def read_mamba(hf: HFConfig, width: int) -> dict[str, Any]:
    """Config fields from the keys of models with attention beside Mamba-2 (Granite 4, Bamba).

    Raises:
        ModelError: heads do not fill ``mamba_expand`` widths.
    """
    heads, expand = hf.whole("mamba_n_heads", 128), hf.whole("mamba_expand", 2)
    dim = hf.get("mamba_d_head", "auto")
    dim = expand * width // max(heads, 1) if dim == "auto" else hf.whole("mamba_d_head", 64)
    if heads * dim != expand * width:
        raise ModelError(
            "config.json: mamba_n_heads",
            found=f"{heads} heads of {dim} channels",
            expected=f"mamba_expand = {expand} times hidden_size = {width} channels",
        )
    hf.given("mamba_chunk_size")  # how long the chunks are in which the same is computed
    fields = {ours: hf.get(theirs) for ours, theirs in HYBRID.items()}
    fields |= {"mamba_head_dim": dim, "mamba_activation": activation(hf)}
    return fields | read_step_limits(hf)


def hf_mamba(settings: MambaFields, width: int) -> dict[str, Any]:
    """The reverse of :func:`read_mamba`."""
    heads = settings.heads_of(width)
    return {theirs: getattr(settings, ours) for ours, theirs in HYBRID.items()} | {
        "mamba_n_heads": heads,
        "mamba_d_head": settings.mamba_head_dim,
        "mamba_expand": heads * settings.mamba_head_dim // width,
        "time_step_limit": hf_step_limits(settings),
    }


def mamba_names(stack: str, c: Mamba2Config, layers: Layers, theirs: str) -> list[WeightName]:
    """Names of a Mamba-2 layer's weights; projections of the input, and convolutions, are one
    tensor each there."""
    here, there = f"{stack}.mamba.", f"{LAYER}{theirs}."
    keys = c.groups * c.state_dim
    sizes: dict[str, int] = dict(zip(PROJECTIONS, (c.width, c.width, keys, keys, c.heads)))

    def parts(names: tuple[str, ...]) -> dict[str, AxisSlice]:
        found, start = {}, 0
        for name in names:
            found[name] = AxisSlice(0, slice(start, start + sizes[name]))
            start += sizes[name]
        return found

    names = []
    for ours, part in parts(PROJECTIONS).items():
        name = f"{there}in_proj.weight"
        names.append(
            WeightName(f"{here}{ours}.kernel", name, transpose=True, layers=layers, part=part)
        )
        if c.bias:
            bias = f"{there}in_proj.bias"
            names.append(WeightName(f"{here}{ours}.bias", bias, layers=layers, part=part))
    for ours, part in parts(PROJECTIONS[1:4]).items():
        more: dict[str, Any] = {"layers": layers, "part": part}
        name, taps = f"{here}{ours}_convolution.", f"{there}conv1d.weight"
        stored = (sizes[ours], 1, c.taps)
        names.append(WeightName(f"{name}weight", taps, transpose=True, stored_shape=stored, **more))
        if c.convolution_bias:
            names.append(WeightName(f"{name}bias", f"{there}conv1d.bias", **more))
    vectors = {"log_rate": "A_log", "step_bias": "dt_bias", "skip": "D"}
    vectors |= {"norm_scale": "norm.weight"} if c.norm else {}
    vectors |= {"out.bias": "out_proj.bias"} if c.bias else {}
    names += [WeightName(here + a, there + b, layers=layers) for a, b in vectors.items()]
    out = f"{there}out_proj.weight"
    return [*names, WeightName(f"{here}out.kernel", out, transpose=True, layers=layers)]
