"""Trained models of speech with the steps from a waveform to a spectrogram, special tokens and
tokenizer: from a Hugging Face directory or a checkpoint of ours."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ziggurat.checkpoint import read_arrays
from ziggurat.core import config, hub
from ziggurat.core.errors import ModelError
from ziggurat.core.pytrees import named_leaves
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.formats import SafetensorsDirectory
from ziggurat.mesh import Layout
from ziggurat.models import log_mel, speech_tokens
from ziggurat.models.conversion import token_ids
from ziggurat.models.conversion.dropped_tensors import check_copies
from ziggurat.models.conversion.weight_names import export_weights, import_weights
from ziggurat.models.families.family import family_of
from ziggurat.models.language_model import PARAMS
from ziggurat.models.loading import hf_directory, step_files
from ziggurat.models.loading.hf_directory import require_new, write_directory
from ziggurat.models.loading.placing import float_type, place_arrays, placement
from ziggurat.models.log_mel import LogMel, LogMelConfig
from ziggurat.models.speech_model import SpeechModel
from ziggurat.models.speech_tokens import SpeechTokens
from ziggurat.models.traced_model import Params
from ziggurat.nn.precision import Precision

LOG_MEL_FILE = "log_mel.json"
"""How waveforms become spectrograms, inside a checkpoint step."""


@dataclasses.dataclass(frozen=True)
class PretrainedSpeech:
    """A model of speech with its weights, spectrogram, special tokens and tokenizer."""

    model: SpeechModel
    params: Params
    log_mel: LogMel
    tokenizer: HuggingFaceTokenizer
    generation: Mapping[str, Any]
    """Content of ``generation_config.json``."""
    name: str
    """Name of the model on a server."""
    source: str
    """Where it was read from, for people."""

    def __post_init__(self):
        audio, steps = self.model.audio, self.log_mel.config
        if (audio.mel_bins, audio.frames) != (steps.mel_bins, steps.frames):
            raise ModelError(
                f"{self.source}: {log_mel.FILE}",
                found=f"{steps.mel_bins} mel bands, {steps.frames} frames",
                expected=f"{audio.mel_bins} mel bands, {audio.frames} frames, as config.json says",
            )

    @functools.cached_property
    def tokens(self) -> SpeechTokens:
        """Special tokens and limits.

        Raises:
            ModelError: ``generation_config.json`` lacks one.
        """
        return speech_tokens.from_hf(self.generation, self.model.parts.vocab_size)

    @property
    def window(self) -> tuple[int, int]:
        """Mel bands and frames of a window."""
        return self.model.audio.mel_bins, self.model.audio.frames

    @property
    def frame_seconds(self) -> float:
        """Seconds from one frame to the next."""
        return self.log_mel.config.hop / self.log_mel.config.rate


def is_speech(path: Path) -> bool:
    """Whether a directory holds a model of speech; what it holds is looked at no further."""
    step = step_files.step_directory(path)
    if step is not None:
        return (step / LOG_MEL_FILE).is_file()
    return (path / "config.json").is_file() and "audio" in hf_directory.hf_family(path)[0].inputs


def load(
    path: Path | str, *, precision: Precision | None = None, layout: Layout | None = None
) -> PretrainedSpeech:
    """Read a trained model of speech, such as Whisper.

    Args:
        path: a Hugging Face directory (``config.json``, ``generation_config.json``,
            ``preprocessor_config.json``, tokenizer and safetensors), or a checkpoint that
            ``ziggurat import hf`` made of one.
        precision: parameter and compute types; default float32.
        layout: where parameters go; default the first device.

    Raises:
        ModelError: nothing of the kind is there, or the architecture, the feature extractor or a
            switch is unknown.
        CheckpointError: weights are damaged, missing, or of another shape.
    """
    path = hub.local(path)
    step = step_files.step_directory(path) if path.is_dir() else None
    if step is not None:
        return _load_step(step, hub.name_of(path), precision, layout)
    if not (path / "config.json").is_file():
        raise ModelError(
            f"model {path}", found="neither checkpoints nor config.json", expected="one of them"
        )
    family, values = hf_directory.hf_family(path)
    if "audio" not in family.inputs:
        raise ModelError(
            f"model {path}", found=f"a {family.name} model", expected="a model of speech"
        )
    steps, generation = log_mel.read_log_mel(path), speech_tokens.read(path)
    tensors = SafetensorsDirectory(path)
    model = SpeechModel.build(family.from_hf(values), precision)
    names = family.hf_names(model.config)
    copies = check_copies(family.copies, names, tensors)
    params = import_weights(
        names,
        tensors,
        model.abstract,
        layers=0,  # the encoder's and the decoder's names tell theirs
        ignored=lambda name: name in copies,
        place=placement(model.shardings(layout) if layout is not None else {}),
        as_stored=model.precision.as_stored,
    )
    tokenizer = HuggingFaceTokenizer.load(path)
    token_ids.warn_of_larger(tokenizer, model.parts.vocab_size, path)
    made = hub.name_of(path), str(path)
    return PretrainedSpeech(model, params, steps, tokenizer, generation, *made)


def save(
    speech: PretrainedSpeech, directory: Path, records: Mapping[str, Any] | None = None
) -> Path:
    """Write a model of speech as a checkpoint of its own (``step_00000000``), which :func:`load`
    reads.

    Raises:
        CheckpointError: there is a checkpoint already.
    """
    files = step_files.files_of(speech.model.config, speech.tokenizer)
    files[LOG_MEL_FILE] = json.dumps(config.to_plain(speech.log_mel.config)).encode()
    files[speech_tokens.FILE] = json.dumps(dict(speech.generation), indent=2).encode()
    return step_files.save_new(directory, {PARAMS: speech.params}, files, records)


def export_hf(
    speech: PretrainedSpeech, directory: Path, *, max_shard_bytes: int = 5 * 10**9
) -> Path:
    """Write what transformers reads.

    Raises:
        CheckpointError: the directory is there already.
    """
    require_new(directory)
    family, settings = family_of(speech.model.config), speech.model.config
    tokens = speech.tokens
    values = family.to_hf(settings)
    values |= {"decoder_start_token_id": tokens.start, "eos_token_id": tokens.end}
    for key in ("bos_token_id", "pad_token_id"):
        values[key] = speech.generation.get(key, tokens.end)
    # of generating, in generation_config.json; left out, transformers takes another model's ids
    values["begin_suppress_tokens"] = None
    return write_directory(
        directory,
        values,
        export_weights(family.hf_names(settings), speech.params, layers=0),
        dtype=float_type(speech.params),
        tokenizer=speech.tokenizer,
        files={
            speech_tokens.FILE: dict(speech.generation),
            log_mel.FILE: log_mel.to_hf(speech.log_mel.config),
        },
        max_shard_bytes=max_shard_bytes,
    )


def _load_step(
    step: Path, name: str, precision: Precision | None, layout: Layout | None
) -> PretrainedSpeech:
    values, file = json.loads((step / step_files.MODEL_FILE).read_text()), step / LOG_MEL_FILE
    settings = step_files.model_config(values, str(step / step_files.MODEL_FILE))
    if not file.is_file():
        raise ModelError(
            f"model {step}", found=f"a {settings.kind} model", expected="a model of speech"
        )
    model = SpeechModel.build(settings, precision)
    steps = config.from_plain(LogMelConfig, json.loads(file.read_text()), str(file))
    shardings = named_leaves(model.shardings(layout)) if layout is not None else {}
    params = place_arrays(step, read_arrays(step, PARAMS), model.abstract, shardings, precision)
    tokenizer = HuggingFaceTokenizer.load(step / step_files.TOKENIZER)
    generation = speech_tokens.read(step)
    return PretrainedSpeech(model, params, LogMel(steps), tokenizer, generation, name, str(step))
