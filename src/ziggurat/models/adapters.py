"""Low-rank adapters of a model: which weights have one, their shapes, and how they join the base.

Trained are the adapters alone; the base is frozen, and may be quantised. A checkpoint of such a run
holds the adapters and a record of where the base is (``adapter.json``).
"""

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from ziggurat.core import config, prng
from ziggurat.core.errors import CheckpointError, ConfigError, did_you_mean
from ziggurat.core.pytrees import named_leaves, nested
from ziggurat.kernels.linear import LoraWeight, dense, is_adapted, is_quantized, is_weight_node
from ziggurat.models.language_model import LanguageModel, Params
from ziggurat.models.quantized import formats_of, quantized, summed_axes

ADAPTER_FILE = "adapter.json"
"""Inside a checkpoint step: the adapters' settings and where their base is."""


@config.node
class Lora:
    """Low-rank adapters: two thin matrices are trained beside each chosen one, and nothing else."""

    kind: Literal["lora"] = "lora"
    rank: int = 16
    """Columns of the first matrix and rows of the second."""
    alpha: float = 32.0
    """The product counts ``alpha / rank`` times."""
    rslora: bool = False
    """Count it ``alpha / sqrt(rank)`` times instead, so that high ranks learn as fast."""
    targets: str = r"blocks(_\d+)?/.*"
    """Regular expression over whole module paths, such as ``blocks/attention/(query|value)``."""

    def __post_init__(self):
        config.require(self.rank >= 1, "rank", self.rank, "a number >= 1")
        config.require(self.alpha > 0, "alpha", self.alpha, "a number > 0")
        try:
            re.compile(self.targets)
        except re.error as error:
            config.require(False, "targets", self.targets, f"a regular expression ({error})")

    @property
    def scale(self) -> float:
        """How often the product counts (Kalajdzievski 2023 for rsLoRA,
        https://arxiv.org/abs/2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def adapted_names(lora: Lora, model: LanguageModel) -> list[str]:
    """Dotted names of the kernels that get an adapter.

    Raises:
        ConfigError: none does.

    >>> from ziggurat.models import LlamaConfig
    >>> tiny = LlamaConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=2)
    >>> adapted_names(Lora(targets="blocks/attention/(query|value)"), LanguageModel.build(tiny))
    ['blocks.attention.query.kernel', 'blocks.attention.value.kernel']
    """
    kernels = [name for name, axis in summed_axes(model).items() if axis == -2]
    paths = {name: name.removesuffix(".kernel").replace(".", "/") for name in kernels}
    found = [name for name, path in paths.items() if re.fullmatch(lora.targets, path)]
    if not found:
        raise ConfigError(
            "adapter.targets",
            found=f"{lora.targets!r}, which matches no kernel",
            expected="a match among " + ", ".join(paths.values()),
            fix=did_you_mean(lora.targets, paths.values()),
        )
    return found


def adapter_shapes(model: LanguageModel, lora: Lora) -> tuple[Params, Params]:
    """Shapes and logical axis names of the adapters: a nested dict as the model's parameters, with
    ``a`` and ``b`` in the place of each adapted kernel."""
    weights = named_leaves(model.abstract, is_leaf=is_quantized)
    named = named_leaves(model.axes, is_leaf=lambda n: isinstance(n, tuple) or is_quantized(n))
    dtype = model.precision.param_dtype
    shapes, axes = {}, {}
    for name in adapted_names(lora, model):
        *lead, d_in, d_out = weights[name].shape
        whole = named[name]
        *stacked, axis_in, axis_out = whole.qvalue if is_quantized(whole) else whole
        shapes[f"{name}.a"] = jax.ShapeDtypeStruct((*lead, d_in, lora.rank), dtype)
        shapes[f"{name}.b"] = jax.ShapeDtypeStruct((*lead, lora.rank, d_out), dtype)
        axes[f"{name}.a"] = (*stacked, axis_in, None)
        axes[f"{name}.b"] = (*stacked, None, axis_out)
    return nested(shapes), nested(axes)


def initial_adapters(model: LanguageModel, lora: Lora, key: Key[Array, ""]) -> Params:
    """Adapters that change nothing yet: ``a`` uniform within ``1 / sqrt(d)``, as PEFT draws it,
    and ``b`` zero."""
    shapes, _ = adapter_shapes(model, lora)

    def draw(name: str, like: Any) -> Array:
        if name.endswith(".b"):
            return jnp.zeros(like.shape, like.dtype)
        own, bound = jax.random.fold_in(key, prng.purpose_id(name)), like.shape[-2] ** -0.5
        drawn = jax.random.uniform(own, like.shape, jnp.float32, -bound, bound)
        return drawn.astype(like.dtype)

    return nested({name: draw(name, like) for name, like in named_leaves(shapes).items()})


def attached(params: Params, adapters: Params, scale: float) -> Params:
    """The base's parameters with a :class:`LoraWeight` where there is an adapter."""
    found = named_leaves(adapters)

    def join(path: Any, weight: Any) -> Any:
        name = ".".join(str(part.key) for part in path)
        if f"{name}.a" not in found:
            return weight
        return LoraWeight(weight, found[f"{name}.a"], found[f"{name}.b"], scale)

    return jax.tree_util.tree_map_with_path(join, params, is_leaf=is_quantized)


def merged(params: Params) -> Params:
    """Parameters with every adapter added to its base, which is dequantised for that."""
    return jax.tree.map(lambda w: dense(w) if is_adapted(w) else w, params, is_leaf=is_weight_node)


@dataclasses.dataclass(frozen=True)
class AdapterRecord:
    """Record of a checkpoint of adapters: its base and its settings."""

    lora: Lora
    base: Path
    """The step, directory or file of the base."""
    fingerprint: str
    """Fingerprint of the base, see :func:`fingerprint`."""

    def text(self, step: Path | None = None) -> str:
        """The record as JSON. It also holds the base's path relative to ``step``, so that you may
        move both together."""
        base = self.base.absolute()
        values = {"adapter": config.to_plain(self.lora), "base": str(base)}
        if step is not None:
            values["relative"] = os.path.relpath(base, step.absolute())
        return json.dumps(values | {"fingerprint": self.fingerprint}, indent=1)


def read_record(step: Path) -> AdapterRecord:
    """The record inside a checkpoint step.

    Raises:
        CheckpointError: it is damaged, or the base is not there or another one.
    """
    file = step / ADAPTER_FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        lora = config.from_plain(Lora, values["adapter"], str(file))
        places = [Path(values["base"]), step / values.get("relative", "")]
        expected = values["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}", found=error, expected="a record of adapters") from None
    there = [place.resolve() for place in places if place.exists() and place != step / ""]
    for place in there:
        if fingerprint(place) == expected:
            return AdapterRecord(lora, place, expected)
    raise CheckpointError(
        f"base model {values['base']}",
        found="another model than the adapters were trained on" if there else "nothing there",
        expected=f"the base that {file} names",
        fix="put it back, or train the adapters again",
    )


def fingerprint(path: Path) -> str:
    """Fingerprint that tells a model from another one in the same place, without reading weights.

    It is a digest of a step's manifest; else of the names and sizes of the model's files and of its
    ``config.json``.
    """
    digest = hashlib.blake2b(digest_size=16)
    manifest = path / "manifest.json"
    if manifest.is_file():
        digest.update(manifest.read_bytes())
        return digest.hexdigest()
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    for file in files:
        if file.suffix in (".safetensors", ".gguf"):
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        if file.name == "config.json":
            digest.update(file.read_bytes())
    return digest.hexdigest()


def merge_into(
    model: LanguageModel, params: Params, adapters: Mapping[str, Any], lora: Lora
) -> tuple[LanguageModel, Params]:
    """A model and its parameters with adapters added; where the base is quantised, that weight is
    an array afterwards and the others stay as they are."""
    whole = merged(attached(params, dict(adapters), lora.scale))
    plain = LanguageModel.build(model.config, model.precision)
    return quantized(plain, formats_of(whole)), whole
