"""``scheduler_config.json`` of diffusers: which process a model was trained for, and a sampler.

>>> process, sampling = from_diffusers({"_class_name": "DDIMScheduler", "clip_sample": False})
>>> process.prediction, sampling.method, sampling.spacing
('epsilon', 'ddim', 'leading')
"""

from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.diffusion import DiscreteNoise, Process, RectifiedFlow, Sampling

FILE = "scheduler_config.json"
METHODS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "EulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpm++",
}
FLOW_CLASS = "FlowMatchEulerDiscreteScheduler"
SPACING = {"ddim": "leading", "ddpm": "leading", "euler": "linspace", "dpm++": "linspace"}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
VARIANCES = {"fixed_small": "small", "fixed_large": "large"}
SWITCHES = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "thresholding")
"""Refused when on, in every class that has them."""
WITHOUT_EFFECT = ("dynamic_thresholding_ratio", "sample_max_value")
"""Keys that have an effect only with ``thresholding``."""
OF_SOLVER: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver++",),
    "solver_order": (2,),
    "solver_type": ("midpoint",),
    "final_sigmas_type": ("zero",),
    "use_lu_lambdas": (False,),
    "use_dynamic_shifting": (False,),
    "lambda_min_clipped": (-float("inf"),),
}
OF_SOLVER_IDLE = (
    "lower_order_final",
    "euler_at_final",
    "time_shift_type",
    "variance_type",
)
"""The last step is to no noise and of first order whatever they say; a variance is not used."""
STEPS = 50
"""Steps of a sampler that is read: the file does not say."""


def from_diffusers(values: Mapping[str, Any]) -> tuple[Process, Sampling]:
    """A scheduler's config to process and sampler.

    Raises:
        ModelError: the class is unknown, or a switch is set that is not implemented.
    """
    name = str(values.get("_class_name"))
    hf = HFConfig(values, name)
    if name == FLOW_CLASS:
        return _flow(hf)
    if name not in METHODS:
        known = ", ".join([*METHODS, FLOW_CLASS])
        raise ModelError(f"{FILE}: _class_name", found=name, expected=f"one of {known}")
    method = METHODS[name]
    for key in SWITCHES:
        hf.refuse_unless(key, (False,))
    for key in WITHOUT_EFFECT:
        hf.get(key)
    hf.refuse_unless("trained_betas", ())
    hf.refuse_unless("set_alpha_to_one", (True,))
    sampling: dict[str, Any] = {
        "method": method,
        "steps": min(STEPS, hf.whole("num_train_timesteps", 1000)),
        "spacing": hf.get("timestep_spacing", SPACING[method]),
        "offset": hf.get("steps_offset", 0),
    }
    if method in ("ddim", "ddpm"):
        clip, largest = hf.get("clip_sample", True), float(hf.get("clip_sample_range", 1.0))
        sampling["clip"] = largest if clip else None
    if method == "ddpm":
        sampling["variance"] = _known(hf, "variance_type", "fixed_small", VARIANCES)
    elif method == "euler":
        hf.refuse_unless("interpolation_type", ("linear",))
        hf.refuse_unless("timestep_type", ("discrete",))
        hf.refuse_unless("final_sigmas_type", ("zero",))
    elif method == "dpm++":
        for key, accepted in OF_SOLVER.items():
            hf.refuse_unless(key, accepted)
        for key in OF_SOLVER_IDLE:
            hf.get(key)
        shift = float(hf.get("flow_shift", 1.0))
        if hf.get("use_flow_sigmas", False):
            hf.refuse_unless("prediction_type", ("flow_prediction",))
            return _flow_of_solver(hf, shift), Sampling(method="dpm++", steps=sampling["steps"])
    process = {
        "levels_count": hf.get("num_train_timesteps", 1000),
        "schedule": _known(hf, "beta_schedule", "linear", SCHEDULES),
        "beta_start": float(hf.get("beta_start", 1e-4)),
        "beta_end": float(hf.get("beta_end", 0.02)),
        "prediction": _known(hf, "prediction_type", "epsilon", PREDICTIONS),
        "zero_terminal_snr": hf.get("rescale_betas_zero_snr", False),
    }
    hf.finish()
    return checked(DiscreteNoise, process, FILE), checked(Sampling, sampling, FILE)


def to_diffusers(process: Process, sampling: Sampling) -> dict[str, Any]:
    """Process and sampler as a scheduler's config.

    Raises:
        ModelError: a flow's times, of which diffusers takes the number of levels for the scale.
    """
    if isinstance(process, RectifiedFlow):
        if process.time_scale != process.levels_count:
            raise ModelError(
                f"{FILE}: num_train_timesteps",
                found=f"time_scale = {process.time_scale:g} and {process.levels_count} levels",
                expected="the same number, which diffusers has for both",
                fix="train with objective.time_scale equal to objective.levels_count",
            )
        levels = {"num_train_timesteps": process.levels_count}
        if sampling.method == "euler":
            return {"_class_name": FLOW_CLASS, "shift": process.shift} | levels
        kind = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        solver = {"_class_name": "DPMSolverMultistepScheduler", "flow_shift": process.shift}
        return solver | kind | levels
    names = {method: name for name, method in METHODS.items()}
    values: dict[str, Any] = {
        "_class_name": names[sampling.method],
        "num_train_timesteps": process.levels_count,
        "beta_schedule": _reverse(SCHEDULES, process.schedule),
        "beta_start": process.beta_start,
        "beta_end": process.beta_end,
        "prediction_type": _reverse(PREDICTIONS, process.prediction),
        "rescale_betas_zero_snr": process.zero_terminal_snr,
        "timestep_spacing": sampling.spacing or SPACING[sampling.method],
        "steps_offset": sampling.offset,
    }
    if sampling.method in ("ddim", "ddpm"):
        values["clip_sample"] = sampling.clip is not None
        values["clip_sample_range"] = sampling.clip or 1.0
    if sampling.method == "ddpm":
        values["variance_type"] = _reverse(VARIANCES, sampling.variance)
    return values


def _flow(hf: HFConfig) -> tuple[Process, Sampling]:
    for key in (*SWITCHES, "invert_sigmas", "use_dynamic_shifting", "stochastic_sampling"):
        hf.refuse_unless(key, (False,))
    hf.refuse_unless("shift_terminal", ())
    for key in ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"):
        hf.get(key)  # they belong to dynamic shifting
    hf.get("time_shift_type")
    process = _flow_levels(hf) | {"shift": float(hf.get("shift", 1.0))}
    hf.finish()
    return checked(RectifiedFlow, process, FILE), Sampling(method="euler", steps=STEPS)


def _flow_levels(hf: HFConfig) -> dict[str, Any]:
    """Number of levels of a flow; diffusers uses one number for it and for the scale of time."""
    levels = hf.whole("num_train_timesteps", 1000)
    return {"time_scale": float(levels), "levels_count": levels}


def _flow_of_solver(hf: HFConfig, shift: float) -> RectifiedFlow:
    """DPM-Solver over a flow, to which betas and spacing mean nothing."""
    for key in ("beta_schedule", "beta_start", "beta_end", "rescale_betas_zero_snr"):
        hf.get(key)
    levels = _flow_levels(hf)
    hf.finish()
    return checked(RectifiedFlow, levels | {"shift": shift}, FILE)


def _known(hf: HFConfig, key: str, default: str, table: Mapping[str, str]) -> str:
    value = hf.get(key, default)
    if value not in table:
        known = ", ".join(table)
        raise ModelError(f"{FILE}: {key}", found=repr(value), expected=f"one of {known}")
    return table[value]


def _reverse(table: Mapping[str, str], value: str) -> str:
    return next(there for there, here in table.items() if here == value)
