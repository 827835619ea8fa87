"""The language model inside a checkpoint of images and text: its ``config.json`` and its tensors.

Such a checkpoint keeps the language model's settings in a table of its own (``text_config``; files
of Qwen-VL before transformers 5 have them at the top) and puts a prefix before its tensors. Here
the table becomes the ``config.json`` of the text family that computes the same, and the prefixes
are taken off. Towers and projectors are not read.
"""

import collections
import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.architectures import architecture_of
from ziggurat.models.conversion.config_keys import is_harmless, recorded
from ziggurat.models.conversion.hf_config import OFF
from ziggurat.models.conversion.token_ids import KEYS as TOKEN_IDS
from ziggurat.models.conversion.weight_names import TensorSource

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class MultimodalType:
    """A type of model of images and text in transformers."""

    architecture: str
    text: Mapping[str, str]
    """Type of the text family, by the type in ``text_config``; the first is meant where it names
    none. Other types are those of text families themselves."""
    ties_by_text: bool = False
    """``tie_word_embeddings`` of ``text_config`` counts beside that at the top."""
    flat: bool = False
    """Settings of the text may stand at the top."""
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of the text family that the type does not have, and what it computes instead."""


def _same(*types: str) -> Mapping[str, str]:
    return {one: one for one in types}


_LLAVA = _same("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3")
MULTIMODAL_TYPES: Mapping[str, MultimodalType] = {
    "gemma3": MultimodalType("Gemma3ForConditionalGeneration", _same("gemma3_text")),
    "gemma4": MultimodalType("Gemma4ForConditionalGeneration", _same("gemma4_text")),
    "llava": MultimodalType("LlavaForConditionalGeneration", _LLAVA, ties_by_text=True),
    "mistral3": MultimodalType(
        "Mistral3ForConditionalGeneration", _same("mistral", "ministral", "ministral3")
    ),
    "qwen2_vl": MultimodalType(
        "Qwen2VLForConditionalGeneration",
        {"qwen2_vl_text": "qwen2"},
        ties_by_text=True,
        flat=True,
    ),
    "qwen2_5_vl": MultimodalType(
        "Qwen2_5_VLForConditionalGeneration",
        {"qwen2_5_vl_text": "qwen2"},
        ties_by_text=True,
        flat=True,
    ),
    "qwen3_vl": MultimodalType("Qwen3VLForConditionalGeneration", {"qwen3_vl_text": "qwen3"}),
    "qwen3_vl_moe": MultimodalType(
        "Qwen3VLMoeForConditionalGeneration",
        {"qwen3_vl_moe_text": "qwen3_moe"},
        fixed={"norm_topk_prob": True},
    ),
    "qwen3_5": MultimodalType("Qwen3_5ForConditionalGeneration", _same("qwen3_5_text")),
    "qwen3_5_moe": MultimodalType("Qwen3_5MoeForConditionalGeneration", _same("qwen3_5_moe_text")),
}
"""Types of models of images and text whose text part is read."""

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
"""Keys that files of a language model hold, but a table of the text only where they differ from
the defaults of its class."""
Part = Literal["text", "image", "sound"]
PREFIXES: tuple[tuple[str, Part, str], ...] = (
    ("model.language_model.", "text", "model."),
    ("language_model.model.", "text", "model."),
    ("language_model.lm_head.", "text", "lm_head."),
    ("model.vision_tower.vision_model.", "image", "vision_tower."),
    ("model.vision_tower.", "image", "vision_tower."),
    ("model.multi_modal_projector.", "image", "multi_modal_projector."),
    ("model.embed_vision.", "image", "embed_vision."),
    ("model.audio_tower.", "sound", "audio_tower."),
    ("model.embed_audio.", "sound", "embed_audio."),
    ("model.visual.", "image", "visual."),
    ("vision_tower.vision_model.", "image", "vision_tower."),
    ("vision_tower.", "image", "vision_tower."),
    ("multi_modal_projector.", "image", "multi_modal_projector."),
    ("visual.", "image", "visual."),
)
"""Beginnings of tensors' names, with the part that they are of and what stands there instead;
names that begin otherwise are the text's."""


@dataclasses.dataclass(frozen=True)
class TextPart:
    """The language model of a checkpoint of images and text."""

    architecture: str
    """The whole checkpoint's."""
    values: dict[str, Any]
    """``config.json`` of the language model."""


def multimodal_type(values: Mapping[str, Any]) -> str | None:
    """Type of model of a ``config.json`` of images and text; ``None`` for another.

    Raises:
        ModelError: its architecture is of another type.
    """
    architecture, said = architecture_of(values), str(values.get("model_type", ""))
    by_class = {one.architecture: kind for kind, one in MULTIMODAL_TYPES.items()}
    found = by_class.get(architecture)
    if found is None:
        return said if not architecture and said in MULTIMODAL_TYPES else None
    if said not in ("", found):
        raise ModelError(
            "config.json: model_type",
            found=repr(said),
            expected=f"{found!r}, as architectures says {architecture}",
            fix="correct the one that is wrong",
        )
    return found


def text_part(values: Mapping[str, Any]) -> TextPart | None:
    """The language model of a ``config.json`` of images and text; ``None`` for another.

    Raises:
        ModelError: it has no settings of a text, they are of a type that is not read, or it sets a
            key that is not known.
    """
    kind = multimodal_type(values)
    if kind is None:
        return None
    known, own = MULTIMODAL_TYPES[kind], recorded(kind)
    text = _table(kind, values)
    said = str(text.get("model_type", next(iter(known.text))))
    # files of Qwen-VL name the whole's type in the text's table too
    said = next(iter(known.text)) if said == kind else said
    if said not in known.text:
        raise ModelError(
            f"text of {known.architecture}", found=repr(said), expected=" or ".join(known.text)
        )
    found = _as_type(text, said, known.text[said])
    for key, value in known.fixed.items():
        if found.setdefault(key, value) != value:
            raise ModelError(
                f"config.json: text_config.{key}",
                found=repr(found[key]),
                expected=f"{value!r}, which {known.architecture} computes whatever is said",
            )
    ties = [values.get("tie_word_embeddings", own.defaults.get("tie_word_embeddings"))]
    ties += [text.get("tie_word_embeddings")] if known.ties_by_text else []
    found["tie_word_embeddings"] = any(ties)
    found |= {key: values[key] for key in TOKEN_IDS if values.get(key) is not None}
    if "quantization_config" in values:
        found["quantization_config"] = _renamed(values["quantization_config"])
    _finish(kind, values, text)
    return TextPart(known.architecture, found)


def language_values(values: dict[str, Any]) -> dict[str, Any]:
    """``config.json`` of a language model: that of the text part where there are images too."""
    part = text_part(values)
    return values if part is None else part.values


def _table(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the text as they stand in the file."""
    known, text = MULTIMODAL_TYPES[kind], values.get("text_config")
    if text is None and known.flat:
        keys = recorded(next(iter(known.text))).defaults.keys() | {"rope_scaling"}
        return {key: value for key, value in values.items() if key in keys}
    if not isinstance(text, Mapping):
        raise ModelError("config.json: text_config", found=repr(text), expected="a table")
    return dict(text)


def _as_type(text: Mapping[str, Any], said: str, kind: str) -> dict[str, Any]:
    """Settings of a type of text as those of the type that computes the same."""
    found = {k: v for k, v in text.items() if k != "architectures"} | {"model_type": kind}
    for key in SIZES:
        found.setdefault(key, recorded(said).defaults.get(key))
    if said != kind:
        here, there = recorded(said).defaults, recorded(kind).defaults
        said_so = {recorded(said).aliases.get(key, key) for key in text}
        for key in here.keys() & there.keys() - said_so:
            if here[key] != there[key]:
                found[key] = here[key]
    for key in ("rope_scaling", "rope_parameters"):
        form = found.get(key)
        if isinstance(form, Mapping) and "mrope" in (form.get("type"), form.get("rope_type")):
            # rotation by several axes, which mrope_section says; plain text is on one place of all
            found[key] = {k: v for k, v in form.items() if k not in ("type", "rope_type")}
    return found


def _renamed(settings: Any) -> Any:
    """A config of quantisation whose modules are named as in the text part."""
    if not isinstance(settings, Mapping):
        return settings

    def shorter(entry: Any) -> Any:
        return part_of(f"{entry}.")[1][:-1] if isinstance(entry, str) else entry

    return {
        key: [shorter(entry) for entry in value] if isinstance(value, list) else value
        for key, value in settings.items()
    }


def _finish(kind: str, values: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Refuse keys at the top that neither the type of model nor its text has."""
    own = recorded(kind)
    known = own.defaults.keys() | own.aliases.keys() | {"quantization_config"}
    flat = text.keys() if values.get("text_config") is None else set()
    for key, value in values.items():
        names_token = key.endswith(("_token_id", "_token_index"))
        if key in known or key in flat or names_token or is_harmless(key) or value in OFF:
            continue
        raise ModelError(
            f"config.json: {key}",
            found=repr(value),
            expected=f"only keys of {MULTIMODAL_TYPES[kind].architecture}",
            fix="remove the key if it has no effect on the model",
        )


def part_of(name: str) -> tuple[Part, str]:
    """Part of a checkpoint of images and text that a tensor belongs to, and its name there.

    >>> part_of("model.language_model.layers.0.up"), part_of("vision_tower.norm")
    (('text', 'model.layers.0.up'), ('image', 'vision_tower.norm'))
    """
    for beginning, part, instead in PREFIXES:
        if name.startswith(beginning):
            return part, instead + name.removeprefix(beginning)
    return "text", name


class PartTensors:
    """Tensors of one part of a checkpoint of images and text, by their names in the part.

    Args:
        tensors: the whole checkpoint.
        part: the part.
    """

    def __init__(self, tensors: TensorSource, part: Part):
        self._tensors = tensors
        self.mapped = getattr(tensors, "mapped", False)
        self._homes: dict[str, str] = {}
        self.left_out: list[str] = []
        """Tensors of the other part, by their names in the checkpoint."""
        for home in tensors:
            found, name = part_of(home)
            if found != part:
                self.left_out.append(home)
                continue
            other = self._homes.setdefault(name, home)
            if other != home:
                raise ModelError(f"tensor {home}", found=f"also {other}", expected="one of the two")

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __contains__(self, name: object) -> bool:
        return name in self._homes

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        return self._tensors.read(self._homes[name])

    def dtype_of(self, name: str) -> np.dtype:
        """Type of a tensor."""
        return self._tensors.dtype_of(self._homes[name])

    def file_of(self, name: str) -> str:
        """Name of the file that a tensor is in; empty where the checkpoint does not say."""
        file_of = getattr(self._tensors, "file_of", None)
        return "" if file_of is None else file_of(self._homes[name])

    def release(self) -> None:
        """Unmap files that no array views any more."""
        release = getattr(self._tensors, "release", None)
        if release is not None:
            release()


def tell_left_out(architecture: str, left_out: Iterable[str]) -> None:
    """Say in one line which tensors are not read, and what follows from that."""
    homes = [part_of(name) for name in left_out]
    counts = collections.Counter(name.partition(".")[0] for _, name in homes)
    told = " and ".join(f"{count} tensors of {part}" for part, count in sorted(counts.items()))
    _log.warning(
        "%s: only its language model is read; %s are left out, and %s are refused",
        architecture,
        told or "no tensors of images",
        "images and sound" if any(part == "sound" for part, _ in homes) else "images",
    )
