"""Interface of a model family, and the table of all families."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from ziggurat.core.errors import ModelError, did_you_mean
from ziggurat.core.registry import Registry
from ziggurat.models.conversion import gguf_architecture
from ziggurat.models.conversion.architectures import check_head, model_type_of
from ziggurat.models.conversion.config_keys import recorded_classes
from ziggurat.models.conversion.gguf_records import RECORDS
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.encoder_model import EncoderFamilyConfig
from ziggurat.models.language_model import ModelConfig
from ziggurat.models.speech_model import SpeechFamilyConfig
from ziggurat.models.two_tower_model import TwoTowerFamilyConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """A model family: its config node, and its names and settings in published checkpoints."""

    name: str
    config_class: type
    architectures: tuple[str, ...]
    """Values of ``architectures`` in a Hugging Face ``config.json`` that this family reads."""
    from_hf: Callable[[Mapping[str, Any]], Any]
    """``config.json`` to config; refuses what the family does not implement."""
    to_hf: Callable[[Any], dict[str, Any]]
    """Config to ``config.json``."""
    hf_names: Callable[[Any], Iterable[WeightName]]
    """Weight names in safetensors files."""
    base: str = "model."
    """Prefix of the names of all weights but the head's; files of a bare model may lack it."""
    buffers: tuple[str, ...] = ("rotary_emb.inv_freq",)
    """How names of tensors end that older files hold and that say nothing."""
    tasks: tuple[str, ...] = ("causal",)
    """Tasks of the classes of transformers that the family reads, see
    :func:`~ziggurat.models.conversion.architectures.task_of`."""
    inputs: tuple[str, ...] = ("text",)
    """Inputs of the family's models: ``text``, ``image``, both in towers of their own, or
    ``audio``."""
    as_found: Callable[[Any, Iterable[str]], Any] = lambda config, names: config
    """The config as a checkpoint's tensors have it, where ``config.json`` does not say whether some
    are there (poolers of encoders)."""
    from_gguf: (
        Callable[[Mapping[str, Any], np.ndarray | None, Collection[str]], ModelConfig] | None
    ) = None
    """GGUF metadata, the tensor of rotary divisors and all tensors' names to config, if published
    so."""
    to_gguf: Callable[[Any], tuple[dict[str, Any], np.ndarray | None]] | None = None
    """Config to GGUF metadata below the architecture's name, and rotary divisors."""
    gguf_names: Callable[[Any], Iterable[WeightName]] | None = None
    """Weight names in GGUF files."""
    ignored: Callable[[Any, str], bool] = lambda config, name: False
    """Whether a config's checkpoints may hold a tensor that is not read."""
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """By the ends of names of tensors that repeat another, the end of that one's name: a head's
    matrix that is the embedding."""
    gguf_architectures: tuple[str, ...] = ()
    """Values of ``general.architecture`` that this family reads."""
    gguf_experts: bool = False
    """Whether it reads those files of its architectures alone that count experts, and another
    family the others (Mixtral, a ``llama`` there)."""

    def __post_init__(self) -> None:
        record = RECORDS.get(self.name)
        if record is not None:
            found = gguf_architecture.fields(record, self.config_class, self.hf_names)
            for name, value in found.items():
                object.__setattr__(self, name, value)

    @property
    def encoder(self) -> bool:
        """Whether the family's models are encoders (``EncoderModel``) rather than language
        models."""
        return "causal" not in self.tasks


FAMILIES: Registry[Family] = Registry("model family", ModelError)


def family_of(
    config: ModelConfig | EncoderFamilyConfig | TwoTowerFamilyConfig | SpeechFamilyConfig,
) -> Family:
    """The family of a config node."""
    return FAMILIES[config.kind]


def family_for_config(values: Mapping[str, Any]) -> Family:
    """The family that reads a ``config.json``, by its ``model_type`` or else its architecture.

    Raises:
        ModelError: none does, or the architecture is one with another head; the text names the
            nearest family.
    """
    kind, types = model_type_of(values), recorded_classes()
    families = (FAMILIES[name] for name in FAMILIES)
    family = next(f for f in families if kind in {types.get(one) for one in f.architectures})
    check_head(values, kind, family.tasks)
    return family


def family_for_gguf(metadata: Mapping[str, Any]) -> Family:
    """The family that reads a GGUF file, by its metadata.

    Raises:
        ModelError: none does; the text names the nearest that is read.
    """
    architecture = str(metadata.get("general.architecture"))
    if metadata.get(f"{architecture}.expert_count"):
        for name in FAMILIES:
            if FAMILIES[name].gguf_experts and architecture in FAMILIES[name].gguf_architectures:
                return FAMILIES[name]
    return family_for_architecture(architecture, gguf=True)


def family_for_architecture(architecture: str, *, gguf: bool = False) -> Family:
    """The family that reads a published architecture.

    Raises:
        ModelError: none does; the text names the nearest that is read.
    """
    known: dict[str, Family] = {}
    for name in FAMILIES:
        family = FAMILIES[name]
        read = family.gguf_architectures if gguf else family.architectures
        if not (gguf and family.gguf_experts):
            known |= dict.fromkeys(read, family)
    if architecture in known:
        return known[architecture]
    raise ModelError(
        "model architecture",
        found=architecture or "none",
        expected="one of " + ", ".join(sorted(known)),
        fix=did_you_mean(architecture, known),
    )
