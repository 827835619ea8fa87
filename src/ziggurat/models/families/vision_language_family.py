"""Interface of a family that reads images and text, and the table of such families."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ziggurat.core.errors import ModelError
from ziggurat.core.kinds import Kinds
from ziggurat.core.registry import Registry
from ziggurat.models.conversion.text_part import MULTIMODAL_TYPES, Part, multimodal_type
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.family import FAMILIES, Family, family_of
from ziggurat.models.vision_language_model import PreparedImage, VisionLanguageConfig


def _decoder(family: Family) -> type | None:
    return None if family.encoder else family.config_class


LANGUAGES = Kinds(FAMILIES, node=_decoder)
"""Config nodes of language models, by kind, for a field of a config node."""


def llava_name(part: Part, name: str) -> str:
    """Name in published files of LLaVA's layout, from a tensor's name in its part.

    >>> llava_name("text", "lm_head.weight"), llava_name("image", "vision_tower.norm")
    ('language_model.lm_head.weight', 'vision_tower.vision_model.norm')
    """
    if part == "text":
        return f"language_model.{name}"
    tower = "vision_tower."
    return f"{tower}vision_model.{name.removeprefix(tower)}" if name.startswith(tower) else name


@dataclasses.dataclass(frozen=True)
class VisionLanguageFamily:
    """A family that reads images and text: its config node, its processor, and its names and
    settings in published checkpoints."""

    name: str
    config_class: type
    model_type: str
    """Type of model in transformers, one of
    :data:`~ziggurat.models.conversion.text_part.MULTIMODAL_TYPES`."""
    from_hf: Callable[[Mapping[str, Any], Any], Any]
    """``config.json`` of the whole, and the config of its language model, to config; refuses what
    the family does not implement."""
    to_hf: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
    """Config, and ``config.json`` of its language model, to ``config.json`` of the whole."""
    tower_names: Callable[[Any], Iterable[WeightName]]
    """Weight names of the tower and projector, as
    :func:`~ziggurat.models.conversion.text_part.part_of` gives them."""
    processor_class: type
    """Config node of the processor."""
    read_processor: Callable[[Path], Any]
    """Config of the processor that a directory describes."""
    write_processor: Callable[[Any], dict[str, Any]]
    """Config of the processor to the content of ``preprocessor_config.json``."""
    prepare: Callable[[Any, Any, Sequence[Any]], list[PreparedImage]]
    """Pictures (files' contents, paths, or pictures of Pillow) as the tower reads them, given the
    family's config and the processor's."""
    measure: Callable[[Any, Any, tuple[int, int]], PreparedImage]
    """Result of ``prepare`` for a picture of this height and width in pixels, with zeros for its
    pixels (see :func:`~ziggurat.models.vision_language_model.blank`)."""
    text_names: Callable[[Any], Iterable[WeightName]] = lambda config: family_of(config).hf_names(
        config
    )
    """Weight names of the language model of this config in new files."""
    published_name: Callable[[Part, str], str] = llava_name
    """Name in published files, from a tensor's name in its part."""
    ignored: Callable[[Any, str], bool] = lambda config, name: False
    """Whether a config's checkpoints may hold a tensor of the tower that is not read."""
    write_together: Callable[[Any], dict[str, Any]] | None = None
    """Config of the processor to the content of ``processor_config.json``, where transformers reads
    some of it there."""
    tower_type: str | None = None
    """Type of the vision tower in transformers, where families of one type of model differ by
    it."""


VISION_LANGUAGE: Registry[VisionLanguageFamily] = Registry("vision-language family", ModelError)


def vision_language_family(values: Mapping[str, Any]) -> VisionLanguageFamily | None:
    """The family that reads a ``config.json`` with its images; ``None`` where there is none."""
    kind, tower = multimodal_type(values), values.get("vision_config")
    said = tower.get("model_type") if isinstance(tower, Mapping) else None
    every = [VISION_LANGUAGE[name] for name in VISION_LANGUAGE]
    found = [one for one in every if one.model_type == kind]
    # with a tower of another type the first of them says what it expects
    return next((one for one in found if one.tower_type == said), next(iter(found), None))


def vision_language_family_of(config: VisionLanguageConfig) -> VisionLanguageFamily:
    """The family of a config node."""
    return VISION_LANGUAGE[config.kind]


def read_architectures() -> Mapping[str, Literal["images", "text"]]:
    """Published architectures of images and text, with what of them is read."""
    with_images = {VISION_LANGUAGE[name].model_type for name in VISION_LANGUAGE}
    return {
        one.architecture: "images" if kind in with_images else "text"
        for kind, one in MULTIMODAL_TYPES.items()
    }
