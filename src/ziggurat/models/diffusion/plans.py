r"""Samplers as tables: every step of every sampler is one linear combination.

With the image :math:`\hat x_0` and the noise :math:`\hat\epsilon` that the model sees in :math:`x`,
and the image :math:`\hat x_0'` it saw one step before, a step is

.. math:: x \leftarrow a_i x + b_i \hat x_0 + c_i \hat\epsilon + d_i \hat x_0' + e_i z

with fresh noise :math:`z`. A sampler is the columns ``a`` to ``e``, computed here in float64 before
anything is traced; one scanned function (``ziggurat.models.diffusion.sampling``) runs them all.

>>> plan = plan_of(RectifiedFlow(), Sampling(method="euler", steps=4))
>>> plan.times.tolist(), [round(float(x), 3) for x in plan.by_noise]
([1000.0, 667.0, 334.0, 1.0], [-0.333, -0.333, -0.333, -0.001])
"""

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.models.diffusion.process import (
    DiscreteNoise,
    Prediction,
    Process,
    RectifiedFlow,
    alphas_cumulative,
)

Method = Literal["ddim", "ddpm", "euler", "dpm++"]
Column = Float[np.ndarray, "n"]

SMALLEST_ALPHA_SQUARED = 2.0**-24
"""Squared alpha of the last level of a process with ``zero_terminal_snr``, in place of the zero
that would be divided by, as in diffusers."""
SMALLEST_VARIANCE = 1e-20
COLUMNS = (
    "times", "input_scale", "alpha", "sigma",
    "by_x", "by_image", "by_noise", "by_old_image", "fresh",
)  # fmt: skip
"""Names of the columns of a :class:`SamplingPlan`."""
OWN_SPACING = {"ddim": "leading", "ddpm": "leading", "euler": "linspace", "dpm++": "linspace"}


@config.node
class Sampling:
    """How images are drawn from a model.

    Papers: DDIM, Song et al. 2020, https://arxiv.org/abs/2010.02502; DDPM, Ho et al. 2020,
    https://arxiv.org/abs/2006.11239; Euler, Karras et al. 2022, https://arxiv.org/abs/2206.00364;
    DPM-Solver++ (2M), Lu et al. 2022, https://arxiv.org/abs/2211.01095.
    """

    method: Method = "euler"
    """``ddim`` and ``ddpm`` (ancestral) are for discrete noise; ``euler`` and ``dpm++`` for all."""
    steps: int = 50
    """Calls of the model."""
    spacing: Literal["leading", "trailing", "linspace"] | None = None
    """Which of the noise levels are visited; default the method's own in diffusers."""
    offset: int = 0
    """Added to the levels of ``leading``."""
    eta: float = 0.0
    """For ``ddim``: fresh noise, from 0 (none) to 1 (as much as ``ddpm``)."""
    variance: Literal["small", "large"] = "small"
    """For ``ddpm``: the lower or the upper bound of the fresh noise's variance."""
    clip: float | None = None
    """Largest magnitude of a predicted image's entries, for ``ddim`` and ``ddpm``; default none."""

    def __post_init__(self):
        config.require(self.steps >= 1, "steps", self.steps, "a number >= 1")
        config.require(self.offset >= 0, "offset", self.offset, "a number >= 0")
        config.require(0 <= self.eta <= 1, "eta", self.eta, "0 to 1")
        config.require(self.clip is None or self.clip > 0, "clip", self.clip, "more than 0")
        for key, unset, methods in (
            ("eta", 0.0, ("ddim",)),
            ("variance", "small", ("ddpm",)),
            ("clip", None, ("ddim", "ddpm")),
        ):
            honoured = self.method in methods or getattr(self, key) == unset
            expected = "nothing: it is for " + " and ".join(methods)
            config.require(honoured, key, getattr(self, key), expected)


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
    """The columns of a sampler, ``n`` steps, float32."""

    prediction: Prediction
    start_scale: float
    """Standard deviation of the noise that sampling starts from."""
    clip: float | None
    times: Column
    """The model's times."""
    input_scale: Column
    """Factor that multiplies ``x`` before the model sees it."""
    alpha: Column
    """Factor of the clean image in the noisy one that the model sees."""
    sigma: Column
    """Factor of the noise in it."""
    by_x: Column
    by_image: Column
    by_noise: Column
    by_old_image: Column
    fresh: Column

    @property
    def steps(self) -> int:
        return len(self.times)

    @property
    def stochastic(self) -> bool:
        """Whether any step adds fresh noise."""
        return bool(self.fresh.any())


def plan_of(process: Process, sampling: Sampling) -> SamplingPlan:
    """A sampler's table for a process.

    Raises:
        ConfigError: the method is not for this process, or a step's level is not among its levels.
    """
    if isinstance(process, RectifiedFlow):
        _refuse_for_flow(sampling)
        return (_flow_euler if sampling.method == "euler" else _flow_solver)(process, sampling)
    if sampling.steps > process.levels_count:
        raise ConfigError(
            "steps", found=sampling.steps, expected=f"at most {process.levels_count}, the levels"
        )
    makers = {"ddim": _ddim, "ddpm": _ddpm, "euler": _euler, "dpm++": _solver}
    return makers[sampling.method](process, sampling)


def _refuse_for_flow(sampling: Sampling) -> None:
    if sampling.method in ("ddim", "ddpm"):
        raise ConfigError(
            "sampler",
            found=f"{sampling.method}, for a model of rectified flow",
            expected="euler or dpm++",
        )
    for key, unset in (("spacing", None), ("offset", 0)):
        if getattr(sampling, key) != unset:
            raise ConfigError(
                key,
                found=getattr(sampling, key),
                expected="nothing: a rectified flow has no levels, its shift spaces the steps",
            )


def _columns(steps: int, **given: np.ndarray | float) -> dict[str, np.ndarray]:
    """All columns as float32; those not given are zero, the input's scale one."""
    values = dict.fromkeys(COLUMNS, 0.0) | {"input_scale": 1.0} | given
    return {
        name: np.broadcast_to(np.asarray(value, np.float64), (steps,)).astype(np.float32)
        for name, value in values.items()
    }


def _levels(process: DiscreteNoise, sampling: Sampling, extra: int = 0) -> np.ndarray:
    """The visited levels, strongest noise first; ``extra`` are left out at the end (DPM-Solver)."""
    count, steps = process.levels_count, sampling.steps
    spacing = sampling.spacing or OWN_SPACING[sampling.method]
    if spacing == "linspace":
        at = np.linspace(0, count - 1, steps + extra)
        at = at if sampling.method == "euler" else at.round()
        return at[::-1][:steps]
    if spacing == "leading":
        at = np.arange(steps + extra) * (count // (steps + extra))
        at = at[::-1][:steps] + sampling.offset
        if at[0] > count - 1 and sampling.method in ("ddim", "ddpm"):  # the others interpolate
            raise ConfigError(
                "offset",
                found=f"{sampling.offset}, which makes {at[0]} the first of {steps} levels",
                expected=f"at most {count - 1 - at[0] + sampling.offset} with {count} levels",
            )
        return at.astype(np.float64)
    return np.round(np.arange(count, 0, -count / steps))[:steps] - 1


def _ddim(process: DiscreteNoise, sampling: Sampling) -> SamplingPlan:
    at = _levels(process, sampling)
    kept = alphas_cumulative(process)
    before = at.astype(int) - process.levels_count // len(at)  # not the next visited: as diffusers
    here, there = kept[at.astype(int)], np.where(before >= 0, kept[before.clip(min=0)], 1.0)
    variance = (1 - there) / (1 - here) * (1 - here / there)
    fresh = sampling.eta * np.sqrt(variance)
    columns = _columns(
        len(at),
        times=at,
        alpha=np.sqrt(here),
        sigma=np.sqrt(1 - here),
        by_image=np.sqrt(there),
        by_noise=np.sqrt(1 - there - fresh**2),
        fresh=fresh,
    )
    return SamplingPlan(process.prediction, 1.0, sampling.clip, **columns)


def _ddpm(process: DiscreteNoise, sampling: Sampling) -> SamplingPlan:
    at = _levels(process, sampling)
    here = alphas_cumulative(process)[at.astype(int)]
    there = np.append(here[1:], 1.0)
    beta = 1 - here / there
    variance = np.maximum((1 - there) / (1 - here) * beta, SMALLEST_VARIANCE)
    fresh = np.sqrt(variance if sampling.variance == "small" else beta)
    columns = _columns(
        len(at),
        times=at,
        alpha=np.sqrt(here),
        sigma=np.sqrt(1 - here),
        by_x=np.sqrt(1 - beta) * (1 - there) / (1 - here),
        by_image=np.sqrt(there) * beta / (1 - here),
        fresh=np.where(at > 0, fresh, 0.0),
    )
    return SamplingPlan(process.prediction, 1.0, sampling.clip, **columns)


def _ratios(process: DiscreteNoise, at: np.ndarray) -> np.ndarray:
    r""":math:`\sigma / \alpha` at the visited levels, interpolated, with 0 behind the last."""
    kept = alphas_cumulative(process)
    if process.zero_terminal_snr:
        kept = np.append(kept[:-1], SMALLEST_ALPHA_SQUARED)
    ratios = np.sqrt((1 - kept) / kept)
    return np.append(np.interp(at, np.arange(len(ratios)), ratios), 0.0)


def _euler(process: DiscreteNoise, sampling: Sampling) -> SamplingPlan:
    at = _levels(process, sampling)
    ratios = _ratios(process, at)
    scale = 1 / np.sqrt(ratios[:-1] ** 2 + 1)
    columns = _columns(
        len(at),
        times=at,
        input_scale=scale,
        alpha=scale,
        sigma=ratios[:-1] * scale,
        by_x=1.0,
        by_noise=np.diff(ratios),
    )
    leading = (sampling.spacing or OWN_SPACING["euler"]) == "leading"
    start = np.sqrt(ratios[0] ** 2 + 1) if leading else ratios[0]
    return SamplingPlan(process.prediction, float(start), None, **columns)


def _solver(process: DiscreteNoise, sampling: Sampling) -> SamplingPlan:
    at = _levels(process, sampling, extra=1)
    ratios = _ratios(process, at)
    alpha = 1 / np.sqrt(ratios**2 + 1)
    return _second_order(process.prediction, at, alpha, ratios * alpha)


def _second_order(
    prediction: Prediction, times: np.ndarray, alpha: np.ndarray, sigma: np.ndarray
) -> SamplingPlan:
    """DPM-Solver++ (2M) between ``n + 1`` levels; first and last step are of first order."""
    with np.errstate(divide="ignore"):
        length = np.diff(np.log(alpha) - np.log(sigma))
    toward = -alpha[1:] * np.expm1(-length)
    half = np.zeros_like(toward)  # of the slope between the last two predictions
    half[1:-1] = 0.5 * length[1:-1] / length[:-2]
    columns = _columns(
        len(times),
        times=times,
        alpha=alpha[:-1],
        sigma=sigma[:-1],
        by_x=sigma[1:] / sigma[:-1],
        by_image=toward * (1 + half),
        by_old_image=-toward * half,
    )
    return SamplingPlan(prediction, 1.0, None, **columns)


def _shifted(process: RectifiedFlow, sigmas: Any) -> Any:
    return process.shift * sigmas / (1 + (process.shift - 1) * sigmas)


def _flow_euler(process: RectifiedFlow, sampling: Sampling) -> SamplingPlan:
    last = _shifted(process, 1 / process.levels_count)
    sigmas = _shifted(process, np.linspace(1.0, last, sampling.steps))
    step = np.diff(sigmas, append=0.0)
    columns = _columns(
        sampling.steps,
        times=process.time_scale * sigmas,
        alpha=1 - sigmas,
        sigma=sigmas,
        by_x=1.0,
        by_image=-step,
        by_noise=step,
    )
    return SamplingPlan("flow", 1.0, None, **columns)


def _flow_solver(process: RectifiedFlow, sampling: Sampling) -> SamplingPlan:
    sigmas = 1 - np.linspace(1, 1 / process.levels_count, sampling.steps + 1)
    sigmas = np.append(_shifted(process, sigmas)[::-1][:-1], 0.0)
    times = process.time_scale * sigmas[:-1]
    return _second_order("flow", times, 1 - sigmas, sigmas)
