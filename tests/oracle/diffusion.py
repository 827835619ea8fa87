"""What diffusers computes: a DiT and an autoencoder of random weights, and every step of its
samplers::

    python -m tests.oracle.diffusion --write    # recompute and store
    python -m tests.oracle.diffusion --check    # recompute and compare with what is stored

Weights are drawn from their names (:func:`drawn`), so that only shapes and outputs are stored.
Arrays of images are stored channels last.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_suffix(".npz")
SIZE, CHANNELS, CLASSES = 8, 3, 5
DIT: dict[str, Any] = {
    "num_attention_heads": 3,
    "attention_head_dim": 8,
    "in_channels": CHANNELS,
    "num_layers": 2,
    "sample_size": SIZE,
    "patch_size": 2,
    "num_embeds_ada_norm": CLASSES,
    "norm_eps": 1e-6,
}
DITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "variance-affine": {
        "out_channels": 2 * CHANNELS,
        "norm_elementwise_affine": True,
        "norm_eps": 1e-2,
        "attention_bias": False,
        "activation_fn": "gelu",
        "patch_size": 4,
    },
    "geglu": {"activation_fn": "geglu"},
    "swiglu": {"activation_fn": "swiglu"},
    "quick": {"activation_fn": "geglu-approximate"},
    "silu": {"activation_fn": "linear-silu"},
}
SHARED = "plain"
"""Of this case there is an output too with one embedding of time and class for all blocks, as
published weights have it, and one for larger images."""
LARGER = 12
AUTOENCODER: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 16,
}
AUTOENCODERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "switches": {
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "block_out_channels": [4, 8, 8],
        "layers_per_block": 2,
        "in_channels": 1,
        "act_fn": "gelu",
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": False,
        "scaling_factor": 0.5,
        "shift_factor": 0.25,
    },
}
SAMPLERS: dict[str, tuple[str, dict[str, Any], int, float]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}, 7, 0.0),
    "ddim-eta-v": (
        "DDIMScheduler",
        {
            "prediction_type": "v_prediction",
            "beta_schedule": "squaredcos_cap_v2",
            "timestep_spacing": "trailing",
            "rescale_betas_zero_snr": True,
        },
        10,
        0.7,
    ),
    "ddim-x0": ("DDIMScheduler", {"prediction_type": "sample", "steps_offset": 1}, 9, 0.0),
    "ddpm": ("DDPMScheduler", {}, 10, 0.0),
    "ddpm-large-v": (
        "DDPMScheduler",
        {
            "variance_type": "fixed_large",
            "prediction_type": "v_prediction",
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "clip_sample": False,
            "timestep_spacing": "linspace",
        },
        8,
        0.0,
    ),
    "euler": ("EulerDiscreteScheduler", {}, 7, 0.0),
    "euler-v-leading": (
        "EulerDiscreteScheduler",
        {"prediction_type": "v_prediction", "timestep_spacing": "leading", "steps_offset": 1},
        9,
        0.0,
    ),
    "dpm++": ("DPMSolverMultistepScheduler", {}, 8, 0.0),
    "dpm++-v-trailing": (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        16,
        0.0,
    ),
    "dpm++-cosine-once": (
        "DPMSolverMultistepScheduler",
        {"beta_schedule": "squaredcos_cap_v2"},
        1,
        0.0,
    ),
    "dpm++-flow": (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 2.0},
        8,
        0.0,
    ),
    "flow": ("FlowMatchEulerDiscreteScheduler", {}, 7, 0.0),
    "flow-shift": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, 7, 0.0),
    "flow-levels": (
        "FlowMatchEulerDiscreteScheduler",
        {"shift": 3.0, "num_train_timesteps": 100},
        7,
        0.0,
    ),
}
"""By name: diffusers' class, its arguments, steps, and ``eta``."""
SHAPE = (2, 3, 2, 2)
"""Of what samplers are run on."""


def generator(name: str) -> np.random.Generator:
    """A stream of numbers that belongs to a name."""
    word = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(word, "little"))


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight: about one for the scales of norms; else such that results stay of order one."""
    values = generator(name).standard_normal(shape)
    if len(shape) == 1:
        scale = "norm" in name and name.endswith("weight")
        return (0.1 * values + (1.0 if scale else 0.0)).astype(np.float32)
    return (values / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def weights(shapes: dict[str, list[int]], *, shared: bool = False) -> dict[str, np.ndarray]:
    """All tensors; with ``shared`` every block has the first one's embeddings of time and class."""

    def source(name: str) -> str:
        if not shared or ".norm1.emb." not in name:
            return name
        return f"transformer_blocks.0.{name.split('.', 2)[2]}"

    return {name: drawn(source(name), tuple(shape)) for name, shape in shapes.items()}


def images(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Input of a case, channels last."""
    return generator(f"input {name}").standard_normal(shape).astype(np.float32)


TIMES = np.array([3.0, 500.5, 999.0], np.float32)
LABELS = np.array([0, 4, 5], np.int32)
"""The last stands for no class."""


def toy(x: Any, time: Any, tanh: Any) -> Any:
    """What stands for a model when samplers are run."""
    return 0.6 * tanh(1.3 * x + time / 1000.0)


def _torch_module(kind: str, arguments: dict[str, Any], shared: bool = False) -> Any:
    import diffusers
    import torch

    module = getattr(diffusers, kind)(**arguments).eval()
    shapes = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    tensors = weights(shapes, shared=shared)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    return module, shapes


def _first(x: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def _last(x: Any) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x.numpy(), 1, -1))


def torch_dit(case: str, *, shared: bool = False) -> tuple[Any, dict[str, list[int]]]:
    """The module and its shapes."""
    return _torch_module("DiTTransformer2DModel", DIT | DITS[case], shared)


def torch_autoencoder(case: str) -> tuple[Any, dict[str, list[int]]]:
    """The module and its shapes."""
    return _torch_module("AutoencoderKL", AUTOENCODER | AUTOENCODERS[case])


def _dit(case: str, size: int = SIZE, *, shared: bool = False) -> tuple[np.ndarray, Any]:
    import torch

    module, shapes = torch_dit(case, shared=shared)
    x = _first(images(f"dit {size}", (3, size, size, CHANNELS)))
    with torch.no_grad():
        time, labels = torch.from_numpy(TIMES), torch.from_numpy(LABELS)
        return _last(module(x, time, labels).sample), shapes


def _autoencoder(case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
    import torch

    module, shapes = torch_autoencoder(case)
    channels = module.config.in_channels
    with torch.no_grad():
        found = module.encode(_first(images("autoencoder", (2, 16, 16, channels)))).latent_dist
        decoded = module.decode(_first(images("latents", (2, 6, 6, 4)))).sample
    return _last(found.mean), _last(found.std), _last(decoded), shapes


def _sampler(case: str) -> np.ndarray:
    """What every step gives, ``[n, ...]``."""
    import diffusers
    import torch
    from diffusers.schedulers import scheduling_ddpm

    name, arguments, steps, eta = SAMPLERS[case]
    scheduler = getattr(diffusers, name)(**arguments)
    scheduler.set_timesteps(steps)
    fresh = torch.from_numpy(noise(case))
    x = torch.from_numpy(images("start", SHAPE)) * getattr(scheduler, "init_noise_sigma", 1.0)
    path = []
    original = scheduling_ddpm.randn_tensor
    try:
        for number, time in enumerate(scheduler.timesteps):
            seen = x
            if hasattr(scheduler, "scale_model_input"):
                seen = scheduler.scale_model_input(x, time)
            # flow times that diffusers' solver rounds down to whole numbers are kept whole here
            at = scheduler.sigmas[number] * 1000 if arguments.get("use_flow_sigmas") else time
            output = toy(seen, at, torch.tanh)
            extra = {}
            if name == "DDIMScheduler" and eta:
                extra = {"eta": eta, "variance_noise": fresh[number]}
            scheduling_ddpm.randn_tensor = lambda *a, n=number, **k: fresh[n]
            x = scheduler.step(output, time, x, **extra).prev_sample
            path.append(x.numpy())
    finally:
        scheduling_ddpm.randn_tensor = original
    return np.stack(path)


def noise(case: str) -> np.ndarray:
    """Fresh noise of every step of a sampler's case."""
    return images(f"noise {case}", (SAMPLERS[case][2], *SHAPE))


def recompute() -> dict[str, np.ndarray]:
    """All that is stored."""
    import torch

    torch.manual_seed(0)
    arrays: dict[str, np.ndarray] = {}
    shapes: dict[str, Any] = {}
    for case in DITS:
        arrays[f"dit/{case}"], shapes[f"dit/{case}"] = _dit(case)
    arrays["dit/shared"], _ = _dit(SHARED, shared=True)
    arrays["dit/larger"], _ = _dit(SHARED, LARGER)
    for case in AUTOENCODERS:
        parts = _autoencoder(case)
        shapes[f"autoencoder/{case}"] = parts[-1]
        for name, array in zip(("mean", "deviation", "decoded"), parts):
            arrays[f"autoencoder/{case}/{name}"] = array
    for case in SAMPLERS:
        arrays[f"sampler/{case}"] = _sampler(case)
    text = json.dumps(shapes, sort_keys=True).encode()
    return arrays | {"shapes": np.frombuffer(text, np.uint8)}


def load() -> dict[str, np.ndarray]:
    """What is stored."""
    with np.load(FILE) as file:
        return dict(file)


def shapes_of(name: str) -> dict[str, list[int]]:
    """Shapes of a case's tensors, as stored."""
    return json.loads(load()["shapes"].tobytes())[name]


def compare(found: dict[str, np.ndarray]) -> None:
    """Recomputed against stored."""
    stored = load()
    assert found.keys() == stored.keys()
    for name, array in found.items():
        if name == "shapes":
            assert array.tobytes() == stored[name].tobytes()
        else:
            scale = np.abs(stored[name]).max()
            np.testing.assert_allclose(array, stored[name], atol=1e-5 * scale, err_msg=name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle.diffusion")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true")
    action.add_argument("--check", action="store_true")
    found = recompute()
    if parser.parse_args().write:
        np.savez_compressed(FILE, **found)  # pyright: ignore[reportArgumentType]
    else:
        compare(found)


if __name__ == "__main__":
    main()
