"""Options of diffusers' schedulers, one by one and drawn together: each sampler that is accepted
equals diffusers step by step, and what would not is refused."""

import inspect
import random

import numpy as np
import pytest

from ziggurat.core.errors import ConfigError, ModelError
from ziggurat.models.conversion import diffusers_scheduler
from ziggurat.models.diffusion import Sampling, plan_of

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore::FutureWarning")]
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

LEVELS = {"num_train_timesteps": (1000, 100, 500, 2000)}
BETAS = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    "beta_start": (1e-4, 0.00085),
    "beta_end": (0.02, 0.012),
    "trained_betas": (None, [0.1] * 1000),
    "rescale_betas_zero_snr": (False, True),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "steps_offset": (0, 1, 3),
}
CLIP = {"clip_sample": (False, True), "clip_sample_range": (1.0, 0.5)}
THRESHOLD = {
    "thresholding": (False, True),
    "dynamic_thresholding_ratio": (0.995, 0.9),
    "sample_max_value": (1.0, 2.0),
}
SIGMAS = {
    "use_karras_sigmas": (False, True),
    "use_exponential_sigmas": (False, True),
    "use_beta_sigmas": (False, True),
}
VALUES = {
    "DDIMScheduler": LEVELS | BETAS | CLIP | THRESHOLD | {"set_alpha_to_one": (True, False)},
    "DDPMScheduler": LEVELS
    | BETAS
    | CLIP
    | THRESHOLD
    | {
        "variance_type": (
            "fixed_small",
            "fixed_small_log",
            "fixed_large",
            "fixed_large_log",
            "learned",
            "learned_range",
        )
    },
    "EulerDiscreteScheduler": LEVELS
    | BETAS
    | SIGMAS
    | {
        "interpolation_type": ("linear", "log_linear"),
        "sigma_min": (None, 0.1),
        "sigma_max": (None, 10.0),
        "timestep_type": ("discrete", "continuous"),
        "final_sigmas_type": ("zero", "sigma_min"),
    },
    "DPMSolverMultistepScheduler": LEVELS
    | BETAS
    | THRESHOLD
    | SIGMAS
    | {
        "prediction_type": ("epsilon", "v_prediction", "sample", "flow_prediction"),
        "solver_order": (1, 2, 3),
        "algorithm_type": ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"),
        "solver_type": ("midpoint", "heun"),
        "lower_order_final": (True, False),
        "euler_at_final": (False, True),
        "use_lu_lambdas": (False, True),
        "use_flow_sigmas": (False, True),
        "flow_shift": (1.0, 3.0),
        "final_sigmas_type": ("zero", "sigma_min"),
        "lambda_min_clipped": (-float("inf"), -5.1),
        "variance_type": (None, "learned"),
        "use_dynamic_shifting": (False, True),
        "time_shift_type": ("exponential",),
    },
    "FlowMatchEulerDiscreteScheduler": LEVELS
    | SIGMAS
    | {
        "shift": (1.0, 3.0, 0.5),
        "use_dynamic_shifting": (False, True),
        "base_shift": (0.5, 0.7),
        "max_shift": (1.15, 1.3),
        "base_image_seq_len": (256, 128),
        "max_image_seq_len": (4096, 1024),
        "invert_sigmas": (False, True),
        "shift_terminal": (None, 0.1),
        "time_shift_type": ("exponential", "linear"),
        "stochastic_sampling": (False, True),
    },
}
STEPS = (1, 2, 3, 7, 20, 50)
TOLERANCE = {"DPMSolverMultistepScheduler": 1e-3, "EulerDiscreteScheduler": 1e-3}
"""Of the largest magnitude. Where the signal is almost gone, ``sigma`` is 4096: float32 then has an
absolute error of 2e-4, here and there; logarithms of such signals lose as much."""
SHAPE = (2, 3)


def options(name: str, draws: int = 40):
    """The defaults, each other value of each option alone, and draws of several together."""
    values = VALUES[name]
    yield {}
    for key, choices in values.items():
        for choice in choices:
            yield {key: choice}
    chance = random.Random(name)
    easy = {key: choices for key, choices in values.items() if key in LEVELS | BETAS | CLIP}
    easy.pop("trained_betas", None)
    easy |= {k: v for k, v in values.items() if k in ("shift", "flow_shift", "use_flow_sigmas")}
    for _ in range(draws):
        yield {key: chance.choice(choices) for key, choices in easy.items()}


def toy(x, time, tanh):
    return 0.6 * tanh(1.3 * x + time / 1000.0)


def theirs(name, scheduler, steps, start, fresh):
    """What every step of diffusers gives."""
    from diffusers.schedulers import scheduling_ddpm

    scheduler.set_timesteps(steps)
    x, path = torch.from_numpy(start) * getattr(scheduler, "init_noise_sigma", 1.0), []
    original = scheduling_ddpm.randn_tensor
    flow = getattr(scheduler.config, "use_flow_sigmas", False)
    try:
        for number, time in enumerate(scheduler.timesteps):
            scale = getattr(scheduler, "scale_model_input", lambda sample, _: sample)
            # flow times that diffusers' solver rounds down to whole numbers are kept whole here
            at = scheduler.sigmas[number] * scheduler.config.num_train_timesteps if flow else time
            output = toy(scale(x, time), at, torch.tanh)
            scheduling_ddpm.randn_tensor = lambda *a, n=number, **k: torch.from_numpy(fresh[n])
            x = scheduler.step(output, time, x).prev_sample
            path.append(x.numpy())
    finally:
        scheduling_ddpm.randn_tensor = original
    return np.stack(path)


def _predicted(prediction, x, output, alpha, sigma):
    """Image and noise."""
    if prediction == "epsilon":
        return (x - sigma * output) / alpha, output
    if prediction == "x0":
        return output, (x - alpha * output) / sigma
    if prediction == "flow":
        return x - sigma * output, x + alpha * output
    return alpha * x - sigma * output, alpha * output + sigma * x


def ours(plan, start, fresh):
    """The same by our table, in NumPy: compiling each would take minutes."""
    x, old, path = start * plan.start_scale, np.zeros_like(start), []
    np.seterr(divide="ignore", invalid="ignore")
    for n in range(plan.steps):
        seen = x * plan.input_scale[n]
        output = toy(seen, plan.times[n], np.tanh)
        image, noise = _predicted(plan.prediction, seen, output, plan.alpha[n], plan.sigma[n])
        if plan.clip is not None:
            image = np.clip(image, -plan.clip, plan.clip)
        x = plan.by_x[n] * x + plan.by_image[n] * image + plan.by_noise[n] * noise
        x, old = x + plan.by_old_image[n] * old + plan.fresh[n] * fresh[n], image
        path.append(x)
    return np.stack(path)


def test_the_matrix_knows_every_option():
    for name, values in VALUES.items():
        known = set(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self"}
        assert set(values) == known, name


@pytest.mark.parametrize("name", VALUES)
def test_accepted_options_equal_diffusers(name):
    rng = np.random.default_rng(0)
    start = rng.normal(size=SHAPE).astype(np.float32)
    fresh = rng.normal(size=(max(STEPS), *SHAPE)).astype(np.float32)
    equal = refused = 0
    wrong = []
    for given in options(name):
        try:
            scheduler = getattr(diffusers, name)(**given)
        except (ValueError, NotImplementedError, ImportError):
            continue  # diffusers itself refuses
        # a file holds every option, as diffusers writes it
        written = {"_class_name": name, **scheduler.config} if len(given) % 2 else given
        try:
            process, sampling = diffusers_scheduler.from_diffusers({"_class_name": name} | written)
        except ModelError:
            refused += 1
            continue
        for steps in STEPS:
            chosen = Sampling(**{**vars(sampling), "steps": steps})
            try:
                plan = plan_of(process, chosen)
            except ConfigError:
                refused += 1
                continue
            try:
                expected = theirs(name, getattr(diffusers, name)(**given), steps, start, fresh)
            except (ValueError, IndexError, ZeroDivisionError) as error:
                wrong.append(f"{given} {steps} steps: diffusers raises {error}, we do not")
                continue
            found, scale = ours(plan, start, fresh), max(1.0, float(np.abs(expected).max()))
            far = (
                float(np.abs(found - expected).max()) / scale if len(found) == len(expected) else -1
            )
            if not 0 <= far <= TOLERANCE.get(name, 5e-5):
                wrong.append(f"{given} {steps} steps: off by {far:.2g}")
            equal += 1
    assert not wrong, f"{len(wrong)} of {equal}\n" + "\n".join(wrong[:60])
    assert equal > 50
    assert refused > 3
