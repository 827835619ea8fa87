"""Adapters as PEFT keeps them: ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT names an adapter by the module it belongs to, a layer at a time; here the layers of a stack are
one array. Reading fills layers without an adapter with zeros, which add nothing; so it does ranks
below the highest (``rank_pattern``), and other scales (``alpha_pattern``) go into ``b``.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ziggurat.core import atomic, hub
from ziggurat.core.errors import CheckpointError, ModelError
from ziggurat.core.pytrees import named_leaves, nested
from ziggurat.formats import SafetensorsDirectory, write_sharded
from ziggurat.models.adapters import Lora
from ziggurat.models.language_model import LanguageModel, Params
from ziggurat.models.loading.peft_modules import AdaptedModule, adaptable_modules, without_module

CONFIG_FILE = "adapter_config.json"
STEM = "adapter_model"
PREFIX = "base_model.model."
PARTS = {"a": "lora_A.weight", "b": "lora_B.weight"}
"""Names of the two factors, stored transposed: ``[r, in]`` and ``[out, r]``."""
PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "modules_to_save": (None, []),
    "megatron_config": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "lora_bias": (False,),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "use_qalora": (False,),
    "use_bdlora": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "layer_replication": (None,),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),  # others move the base
}
"""Settings of a LoRA that changes kernels only, with the values under which it does."""


def is_peft(path: Path) -> bool:
    """Whether a directory holds adapters of PEFT."""
    return (path / CONFIG_FILE).is_file()


def base_of(directory: Path) -> Path:
    """Where the base of PEFT's adapters lies: as their config says, from the current directory,
    from theirs, or on the hub.

    Raises:
        ModelError: it is not on this machine.
    """
    given = _settings(directory).get("base_model_name_or_path")
    for place in (Path(str(given)), directory / str(given)):
        if given and place.exists():
            return place
    if given and hub.HubId.parse(str(given)) is not None:
        return hub.local(str(given))
    raise ModelError(
        f"{directory / CONFIG_FILE}: base_model_name_or_path",
        found=repr(given),
        expected="a model on this machine",
        fix="set it to the path of the base model",
    )


def read_peft(directory: Path, model: LanguageModel) -> tuple[Lora, Params]:
    """PEFT's adapters for a model, as arrays by layers' stacks.

    Raises:
        ModelError: a setting asks for more than LoRA on kernels.
        CheckpointError: a tensor belongs to no kernel of the model, is missing its other half, or
            has another shape.
    """
    values = _settings(directory)
    for key, allowed in PLAIN.items():
        if values.get(key, allowed[0]) not in allowed:
            raise ModelError(f"{CONFIG_FILE}: {key}", found=values[key], expected=repr(allowed[0]))
    files = SafetensorsDirectory(directory, STEM)
    left = set(files)
    found: dict[str, np.ndarray] = {}
    scales = _Scales(values)
    for module in adaptable_modules(model):
        found |= _read(module, files, left, model.decoder.n_layers, scales)
    if left or not found:
        raise CheckpointError(
            f"{directory}: {min(left, default=STEM)}",
            found="a tensor that belongs to no kernel of the model" if left else "no adapter",
            expected=f"names like {PREFIX}MODULE.{PARTS['a']}",
            fix="is it the right base model?",
        )
    kernels = sorted({re.sub(r"\.kernel\.[ab]$", "", name).replace(".", "/") for name in found})
    rank = max(array.shape[-1] for name, array in found.items() if name.endswith(".a"))
    lora = Lora(**scales.of_rank(rank), targets="|".join(map(re.escape, kernels)))
    dtype = model.precision.param_dtype
    padded = {name: _padded(found[name], name[-1], rank).astype(dtype) for name in sorted(found)}
    return lora, nested(padded)


def write_peft(
    directory: Path, lora: Lora, adapters: Params, model: LanguageModel, base: str
) -> Path:
    """Write adapters as PEFT reads them.

    Args:
        directory: new.
        lora: their settings.
        adapters: their arrays.
        model: what they belong to.
        base: ``base_model_name_or_path``, the base model as transformers finds it.

    Raises:
        CheckpointError: the directory is there already.
        ModelError: an adapted weight is no module in PEFT.
    """
    if directory.exists():
        raise CheckpointError(f"output {directory}", found="it exists", expected="a new directory")
    lacking = without_module(lora, model)
    if lacking:
        raise ModelError(
            f"adapters of {', '.join(lacking[:3])}",
            found="weights that PEFT has no module for, or would leave out",
            expected="adapter.targets without them",
            fix="ziggurat export hf writes the model with its adapters merged",
        )
    leaves = {
        name: np.asarray(jax.device_get(leaf)) for name, leaf in named_leaves(adapters).items()
    }
    modules = adaptable_modules(model)
    used = [m for m in modules if any(f"{name.ours}.a" in leaves for name, _ in m.kernels)]
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        **_scale_settings(lora, used, leaves),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(module.stored_transposed for module in used),
        "target_modules": _targets(used, modules),
        "inference_mode": True,
    }
    with atomic.new_directory(directory) as target:
        tensors = _tensors(used, leaves, model.decoder.n_layers)
        write_sharded(target, tensors, 10**12, stem=STEM)
        (target / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n")
    return directory


class _Scales:
    """How often the product of each module counts, as ``adapter_config.json`` says."""

    def __init__(self, values: Mapping[str, Any]):
        self._rank, self._alpha = int(values.get("r", 8)), float(values.get("lora_alpha", 8))
        self._rslora = bool(values.get("use_rslora", False))
        self._ranks = values.get("rank_pattern") or {}
        self._alphas = values.get("alpha_pattern") or {}

    def relative(self, module: str, rank: int) -> float:
        """A module's scale over that of a module which no pattern names."""
        alpha = float(self._alphas.get(_key(self._alphas, module), self._alpha))
        return self._scale(alpha, rank) / self._scale(self._alpha, self._rank)

    def of_rank(self, rank: int) -> dict[str, Any]:
        """Settings of adapters that are all padded to this rank, for the scale without patterns."""
        if rank == self._rank:
            return {"rank": rank, "alpha": self._alpha, "rslora": self._rslora}
        return {"rank": rank, "alpha": self._scale(self._alpha, self._rank) * rank}

    def check(self, module: str, rank: int) -> None:
        """Refuse a tensor whose rank is not the one that its config names."""
        wanted = int(self._ranks.get(_key(self._ranks, module), self._rank))
        if rank != wanted:
            raise CheckpointError(
                f"tensor {PREFIX}{module}.{PARTS['a']}", found=f"rank {rank}", expected=f"{wanted}"
            )

    def _scale(self, alpha: float, rank: int) -> float:
        return alpha / (math.sqrt(rank) if self._rslora else rank)


def _key(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that names a module, matched as PEFT does."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)


def _scale_settings(
    lora: Lora, used: list[AdaptedModule], leaves: Mapping[str, Any]
) -> dict[str, Any]:
    """Rank and alpha; for modules that hold several adapters their multiple, so that the scale
    stays. Experts are joined by transformers while loading, which changes a scale by the root of
    the rank: with them it is written as a plain one."""
    experts = any(module.of_experts for module in used)
    alpha = lora.scale * lora.rank if experts else lora.alpha
    rslora = lora.rslora and not experts
    ranks, alphas = {}, {}
    for module in used:
        parts = sum(f"{name.ours}.a" in leaves for name, _ in module.kernels)
        if parts > 1:
            ranks[module.last] = parts * lora.rank
            alphas[module.last] = alpha * (math.sqrt(parts) if rslora else parts)
    found = {"r": lora.rank, "lora_alpha": _number(alpha), "use_rslora": rslora}
    patterns = {"rank_pattern": ranks, "alpha_pattern": {k: _number(v) for k, v in alphas.items()}}
    return found | (patterns if ranks else {})


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _targets(used: list[AdaptedModule], every: list[AdaptedModule]) -> list[str]:
    """Last components of the modules' names; two where one is shared with modules that have no
    adapter, as GPT-2's ``c_proj`` is."""
    others = {module.last for module in every if module not in used}
    names = [module.theirs(1)[0].split(".") for module in used]
    return sorted({".".join(name[-2:] if name[-1] in others else name[-1:]) for name in names})


def _settings(directory: Path) -> dict[str, Any]:
    file = directory / CONFIG_FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}", found=error, expected="valid JSON") from None
    if not isinstance(values, dict):
        raise ModelError(f"{file}", found=type(values).__name__, expected="a JSON object")
    return values


def _read(
    module: AdaptedModule,
    files: SafetensorsDirectory,
    left: set[str],
    layers: int,
    scales: _Scales,
) -> dict[str, np.ndarray]:
    """Factors of each kernel, ``[..., d, r]`` and ``[..., r, f]``; none for a kernel without."""
    tensors: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    theirs = module.theirs(layers)
    for index, name in enumerate(theirs):
        keys = {part: f"{PREFIX}{name}.{end}" for part, end in PARTS.items()}
        there = [part for part, key in keys.items() if key in left]
        if len(there) == 1:
            raise CheckpointError(
                f"tensor {keys[there[0]]}", found="no other half", expected="both matrices"
            )
        if there:
            tensors[index] = _pair(module, files, keys)
            left.difference_update(keys.values())
            rank = len(tensors[index][0])
            scales.check(name, rank)
            tensors[index] = tensors[index][0], tensors[index][1] * scales.relative(name, rank)
    if not tensors:
        return {}
    most = max(len(a) for a, _ in tensors.values())
    made = {}
    for name, (*lead, d_in, d_out) in module.kernels:
        down = np.zeros((len(theirs), d_in, most), np.float32)
        up = np.zeros((len(theirs), most, d_out), np.float32)
        for index, (a, b) in tensors.items():
            down[index, :, : len(a)] = a.T
            up[index, : len(a)] = module.part(name, b)
        made[f"{name.ours}.a"] = down.reshape(*lead, d_in, most)
        made[f"{name.ours}.b"] = up.reshape(*lead, most, d_out)
    return made


def _pair(
    module: AdaptedModule, files: SafetensorsDirectory, keys: Mapping[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """PEFT's matrices ``[r, in]`` and ``[out, r]`` of a module, in float32."""
    a, b = (files.read(keys[part]).astype(np.float32) for part in "ab")
    d_in, d_out = module.kernels[0][1][-2], sum(shape[-1] for _, shape in module.kernels)
    for key, tensor, wanted in ((keys["a"], a, (len(a), d_in)), (keys["b"], b, (d_out, len(a)))):
        if tensor.shape != wanted:
            raise CheckpointError(
                f"tensor {key}",
                found=f"shape {list(tensor.shape)}",
                expected=f"shape {list(wanted)}",
            )
    return a, b


def _padded(array: np.ndarray, part: str, rank: int) -> np.ndarray:
    """With zeros up to a rank, which add nothing."""
    axis = -1 if part == "a" else -2
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, rank - array.shape[axis])
    return np.pad(array, widths)


def _tensors(
    used: list[AdaptedModule], leaves: Mapping[str, Any], layers: int
) -> Iterator[tuple[str, np.ndarray]]:
    for module in used:
        for index, theirs in enumerate(module.theirs(layers)):
            for end, matrix in zip(PARTS.values(), module.join(leaves, index), strict=True):
                yield f"{PREFIX}{theirs}.{end}", np.ascontiguousarray(matrix)
