"""Kinds of pretrained models beside language models of text alone: how each is recognised, read,
written, described in a line, and compared with transformers."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from ziggurat.mesh import Layout
from ziggurat.models.loading import (
    pretrained_encoder,
    pretrained_speech,
    pretrained_vision,
    pretrained_vision_language,
    proof,
)
from ziggurat.models.loading.pretrained_encoder import PretrainedEncoder
from ziggurat.models.loading.pretrained_speech import PretrainedSpeech
from ziggurat.models.loading.pretrained_vision import PretrainedVision
from ziggurat.models.loading.pretrained_vision_language import PretrainedVisionLanguage
from ziggurat.nn.precision import Precision

M = TypeVar("M")
Read = TypeVar("Read", covariant=True)
Written = TypeVar("Written", contravariant=True)


@runtime_checkable
class Load(Protocol[Read]):
    """Function that reads a model from a directory."""

    def __call__(
        self, path: Path, /, *, precision: Precision | None = None, layout: Layout | None = None
    ) -> Read: ...


@runtime_checkable
class Export(Protocol[Written]):
    """Function that writes a model as transformers reads it, and returns the directory."""

    def __call__(
        self, model: Written, directory: Path, /, *, max_shard_bytes: int = 5 * 10**9
    ) -> Path: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainedKind(Generic[M]):
    """Functions for the models of one kind."""

    holds: Callable[[Path], bool]
    """Whether a directory holds such a model."""
    load: Load[M]
    """Read it."""
    save: Callable[[M, Path, dict[str, Any]], Path]
    """Write it as a checkpoint of its own, with records beside the arrays."""
    export_hf: Export[M]
    """Write it as transformers reads it."""
    compare: Callable[[Path, M], proof.Proof | proof.EncoderProof]
    """Compare its outputs with transformers', from the directory it was read from."""
    size: Callable[[M], tuple[str, int]]
    """The family's name in configs, and the number of parameters."""
    details: Callable[[M], str]
    """A line about what the model reads."""


def _encoder_details(encoder: PretrainedEncoder) -> str:
    sentence = encoder.sentence
    pooling = f"pooling {sentence.pooling}" + (", normalised" if sentence.normalize else "")
    return f"texts to {sentence.max_length} tokens, {pooling}"


def _vision_details(vision: PretrainedVision) -> str:
    size = vision.processor.config.size
    return "images of their own size" if size is None else f"images of {size[0]} x {size[1]}"


def _speech_details(speech: PretrainedSpeech) -> str:
    tokens, steps = speech.tokens, speech.log_mel.config
    many = f"{len(tokens.languages)} languages" if tokens.multilingual else "English"
    return f"{many}, {steps.mel_bins} mel bands, windows of {steps.seconds} s"


def _tower_details(whole: PretrainedVisionLanguage) -> str:
    count = whole.vision.parameter_count - whole.model.parameter_count
    return f"tower and projector for images {count:,}"


def _size(
    read: PretrainedEncoder | PretrainedVision | PretrainedSpeech,
) -> tuple[str, int]:
    return read.model.config.kind, read.model.parameter_count


ENCODER = PretrainedKind(
    holds=pretrained_encoder.is_encoder,
    load=pretrained_encoder.load,
    save=pretrained_encoder.save,
    export_hf=pretrained_encoder.export_hf,
    compare=proof.encoder_against_transformers,
    size=_size,
    details=_encoder_details,
)
"""Encoders of texts."""
VISION = PretrainedKind(
    holds=pretrained_vision.is_vision,
    load=pretrained_vision.load,
    save=pretrained_vision.save,
    export_hf=pretrained_vision.export_hf,
    compare=proof.vision_against_transformers,
    size=_size,
    details=_vision_details,
)
"""Encoders of images, alone or beside one of texts."""
SPEECH = PretrainedKind(
    holds=pretrained_speech.is_speech,
    load=pretrained_speech.load,
    save=pretrained_speech.save,
    export_hf=pretrained_speech.export_hf,
    compare=proof.speech_against_transformers,
    size=_size,
    details=_speech_details,
)
"""Models of speech."""
VISION_LANGUAGE = PretrainedKind(
    holds=pretrained_vision_language.is_vision_language,
    load=pretrained_vision_language.load,
    save=pretrained_vision_language.save,
    export_hf=pretrained_vision_language.export_hf,
    compare=proof.against_transformers,
    size=lambda whole: (whole.vision.config.kind, whole.vision.parameter_count),
    details=_tower_details,
)
"""Language models that read images."""
KINDS: tuple[PretrainedKind[Any], ...] = (ENCODER, VISION, SPEECH, VISION_LANGUAGE)
"""All of them, in the order in which directories are asked."""


def kind_of(path: Path) -> PretrainedKind[Any] | None:
    """The kind of the model that a directory holds; ``None``: a language model that reads texts
    alone, a diffusion model, a file, or no model."""
    if not path.is_dir():
        return None
    return next((kind for kind in KINDS if kind.holds(path)), None)
