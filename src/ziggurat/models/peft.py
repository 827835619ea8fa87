"""Adapters as PEFT keeps them: ``adapter_config.json`` and ``adapter_model.safetensors``.

PEFT names an adapter by the module it belongs to, a layer at a time; here the layers of a stack are
one array. Reading fills layers without an adapter with zeros, which add nothing.
"""

import collections
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ziggurat.checkpoint import SafetensorsDirectory, write_sharded
from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError, ModelError
from ziggurat.core.pytrees import named_leaves, nested
from ziggurat.kernels.linear import is_quantized
from ziggurat.models.adapters import Lora
from ziggurat.models.family import family_of
from ziggurat.models.language_model import LanguageModel, Params
from ziggurat.models.quantized import summed_axes
from ziggurat.models.weight_names import WeightName

CONFIG_FILE = "adapter_config.json"
STEM = "adapter_model"
PREFIX = "base_model.model."
PARTS = {"a": "lora_A.weight", "b": "lora_B.weight"}
"""Both are stored transposed: ``[r, in]`` and ``[out, r]``."""
PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
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
    """Where the base of PEFT's adapters lies: as their config says, from the current directory or
    from theirs.

    Raises:
        ModelError: it is not on this machine.
    """
    given = _settings(directory).get("base_model_name_or_path")
    for place in (Path(str(given)), directory / str(given)):
        if given and place.exists():
            return place
    raise ModelError(
        f"{directory / CONFIG_FILE}: base_model_name_or_path",
        found=repr(given),
        expected="a model on this machine",
        fix="set it to the path of the base model",
    )


def read_peft(directory: Path, model: LanguageModel) -> tuple[Lora, Params]:
    """PEFT's adapters for a model, as arrays by layers' stacks.

    Raises:
        ModelError: a setting asks for more than LoRA on kernels, or ranks differ within a stack.
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
    ranks: set[int] = set()
    for name, shape in _kernels(model):
        for part, array in _read(name, shape, files, left, model.decoder.n_layers).items():
            found[f"{name.ours}.{part}"] = array
            ranks.add(array.shape[-1 if part == "a" else -2])
    if left or not found:
        raise CheckpointError(
            f"{directory}: {min(left, default=STEM)}",
            found="a tensor that belongs to no kernel of the model" if left else "no adapter",
            expected=f"names like {PREFIX}MODULE.{PARTS['a']}",
            fix="is it the right base model?",
        )
    if len(ranks) > 1:
        raise ModelError(f"{directory}", found=f"ranks {sorted(ranks)}", expected="one rank")
    modules = sorted({re.sub(r"\.kernel\.[ab]$", "", name).replace(".", "/") for name in found})
    settings = {"rank": ranks.pop(), "alpha": float(values.get("lora_alpha", 8))}
    rslora = bool(values.get("use_rslora", False))
    lora = Lora(**settings, rslora=rslora, targets="|".join(map(re.escape, modules)))
    dtype = model.precision.param_dtype
    return lora, nested({name: found[name].astype(dtype) for name in sorted(found)})


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
    """
    if directory.exists():
        raise CheckpointError(f"output {directory}", found="it exists", expected="a new directory")
    leaves = named_leaves(adapters)
    names = [name for name, _ in _kernels(model) if f"{name.ours}.a" in leaves]
    assert len(leaves) == 2 * len(names), "every adapter belongs to a kernel"
    modules = {module for name in names for module in name.all_theirs(model.decoder.n_layers)}
    alpha = int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": alpha,
        "use_rslora": lora.rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": not all(name.transpose for name in names),
        "target_modules": sorted({_module(module).rpartition(".")[2] for module in modules}),
        "inference_mode": True,
    }
    with atomic.new_directory(directory) as target:
        write_sharded(target, _tensors(names, leaves, model), 10**12, stem=STEM)
        (target / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n")
    return directory


def _settings(directory: Path) -> dict[str, Any]:
    file = directory / CONFIG_FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}", found=error, expected="valid JSON") from None
    if not isinstance(values, dict):
        raise ModelError(f"{file}", found=type(values).__name__, expected="a JSON object")
    return values


def _kernels(model: LanguageModel) -> Iterator[tuple[WeightName, tuple[int, ...]]]:
    """Published names of the kernels that may have adapters, and their shapes here."""
    weights = named_leaves(model.abstract, is_leaf=is_quantized)
    kernels = {name for name, axis in summed_axes(model).items() if axis == -2}
    for name in family_of(model.config).hf_names(model.config):
        if name.ours not in kernels:
            continue
        if name.part is None and name.reorder is None and name.restore is None:
            yield name, weights[name.ours].shape


def _module(theirs: str) -> str:
    return theirs.removesuffix(".weight")


def _read(
    name: WeightName,
    shape: tuple[int, ...],
    files: SafetensorsDirectory,
    left: set[str],
    layers: int,
) -> dict[str, np.ndarray]:
    """Both matrices of a kernel, ``[..., d, r]`` and ``[..., r, f]``; nothing if it has none."""
    *lead, d_in, d_out = shape
    tensors: dict[str, dict[int, np.ndarray]] = collections.defaultdict(dict)
    for index, theirs in enumerate(name.all_theirs(layers)):
        keys = {part: f"{PREFIX}{_module(theirs)}.{end}" for part, end in PARTS.items()}
        there = [part for part, key in keys.items() if key in left]
        if len(there) == 1:
            raise CheckpointError(
                f"tensor {keys[there[0]]}", found="no other half", expected="both matrices"
            )
        for part in there:
            tensors[part][index] = files.read(keys[part])
            left.discard(keys[part])
    if not tensors:
        return {}
    rank = next(iter(tensors["a"].values())).shape[0]
    wanted = {"a": (d_in, rank), "b": (rank, d_out)}
    made = {}
    for part, found in tensors.items():
        whole = np.zeros((len(name.all_theirs(layers)), *wanted[part]), np.float32)
        for index, tensor in found.items():
            if tensor.T.shape != wanted[part]:
                raise CheckpointError(
                    f"tensor {part} of {name.ours}",
                    found=f"shape {list(tensor.shape)}",
                    expected=f"shape {list(wanted[part][::-1])}",
                )
            whole[index] = tensor.T.astype(np.float32)
        made[part] = whole.reshape(*lead, *wanted[part])
    return made


def _tensors(
    names: list[WeightName], leaves: Mapping[str, Any], model: LanguageModel
) -> Iterator[tuple[str, np.ndarray]]:
    for name in names:
        for part, end in PARTS.items():
            array = np.asarray(jax.device_get(leaves[f"{name.ours}.{part}"]))
            flat = array.reshape(-1, *array.shape[-2:])
            for index, theirs in enumerate(name.all_theirs(model.decoder.n_layers)):
                yield f"{PREFIX}{_module(theirs)}.{end}", np.ascontiguousarray(flat[index].T)
