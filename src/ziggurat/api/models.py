"""``ziggurat.load``, ``.generate``, ``.transcribe`` and ``.export``: trained models from any place
they are kept."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ziggurat.core import config, hub
from ziggurat.core.errors import ConfigError, ModelError
from ziggurat.models.conversion.quantization.export import Layout as QuantizedLayout
from ziggurat.models.image_pipeline import ImagePipeline
from ziggurat.models.loading import (
    diffusers_layout,
    gguf_output,
    pretrained,
    pretrained_kinds,
    pretrained_pipeline,
    pretrained_speech,
    step_files,
)
from ziggurat.models.loading.pretrained import Pretrained
from ziggurat.models.loading.pretrained_encoder import PretrainedEncoder
from ziggurat.models.loading.pretrained_speech import PretrainedSpeech
from ziggurat.models.loading.pretrained_vision import PretrainedVision
from ziggurat.models.transcriber import Transcriber, Transcription
from ziggurat.nn.precision import Precision

FloatType = Literal["float32", "bfloat16", "float16"]


def load(
    model: str | Path,
    *,
    compute: Literal["float32", "bfloat16"] = "float32",
    as_stored: bool = False,
) -> Pretrained | PretrainedEncoder | PretrainedVision | PretrainedSpeech | ImagePipeline:
    """Read a trained model: configuration, weights, and tokenizer or sampler.

    Args:
        model: a run, a checkpoint step, a Hugging Face directory or id (``owner/name``), a GGUF
            file, or a pipeline of diffusers.
        compute: type of weights and activations.
        as_stored: keep weights in the types that the files have.

    Raises:
        ModelError: there is no model, or it is of a family that is not known.
        CheckpointError: weights are damaged or missing.
    """
    path = hub.local(model)
    precision = Precision(compute, compute, as_stored=as_stored)
    kind = pretrained_kinds.kind_of(path)
    # of a model that reads images the language model alone, with a warning
    if kind is not None and kind is not pretrained_kinds.VISION_LANGUAGE:
        return kind.load(path, precision=precision)
    if _draws(path):
        return pretrained_pipeline.load(path, precision=precision)
    return pretrained.load(path, precision=precision)


def generate(
    model: str | Path | Pretrained,
    prompt: str,
    *,
    chat: bool = False,
    images: Sequence[Any] = (),
    max_tokens: int = 256,
    max_sequence_length: int | None = None,
    compute: Literal["float32", "bfloat16"] = "float32",
    **sampling: Any,
) -> str:
    """Continue a text with a language model, or answer it.

    Each call compiles anew; for several prompts use :class:`ziggurat.serve.llm.LLM`.

    Args:
        model: a path as for :func:`load`, or what it returned.
        prompt: text to continue.
        chat: treat the prompt as a user's message and answer it.
        images: files' contents, paths, or pictures of Pillow, for a model that reads images. With
            ``chat`` they stand before the message; otherwise the prompt holds the model's image
            token once for each.
        max_tokens: most tokens to generate.
        max_sequence_length: context in tokens; default the model's, at most 8192.
        compute: type of weights and activations, for a path.
        **sampling: fields of :class:`ziggurat.serve.llm.SamplingParams`, such as ``temperature``,
            ``top_p``, ``seed`` and ``stop``; default what the model recommends.

    Raises:
        RequestError: the prompt is too long, an image cannot be read, or a sampling parameter is
            out of range.
        DataError: the prompt has more or fewer image tokens than there are images.
        ModelError, CheckpointError: as :func:`load`, or the model reads no images.
    """
    return "".join(
        stream(
            model,
            prompt,
            chat=chat,
            images=images,
            max_sequence_length=max_sequence_length,
            compute=compute,
            sampling={"max_tokens": max_tokens, **sampling},
        )
    )


def transcribe(
    model: str | Path | PretrainedSpeech,
    audio: str | Path | bytes | np.ndarray,
    *,
    language: str | None = None,
    task: str | None = None,
    timestamps: bool = False,
    prompt: str | None = None,
    compute: Literal["float32", "bfloat16"] = "float32",
) -> Transcription:
    """Write what is said in an audio with a model of speech such as Whisper.

    Each call compiles anew; for several audios use :class:`ziggurat.models.Transcriber`.

    Args:
        model: a path as for :func:`load`, or what it returned.
        audio: a WAV file, its content, or samples at 16 kHz.
        language: language spoken, as ``en``; default: it is detected.
        task: ``transcribe``, or ``translate`` into English.
        timestamps: segments by the model's timestamps, rather than one for each window.
        prompt: text that stands before the audio's, for names and style.
        compute: type of weights and activations, for a path.

    Raises:
        DataError: the audio cannot be read or is too long, or the model does not know the language.
        ModelError, CheckpointError: as :func:`load`.
    """
    if not isinstance(model, PretrainedSpeech):
        precision = Precision(compute, compute)
        model = pretrained_speech.load(hub.local(model), precision=precision)
    return Transcriber(model).transcribe(
        audio, language=language, task=task, timestamps=timestamps, prompt=prompt
    )


def stream(
    model: str | Path | Pretrained,
    prompt: str,
    *,
    sampling: dict[str, Any],
    chat: bool = False,
    images: Sequence[Any] = (),
    recommended: bool = True,
    max_sequence_length: int | None = None,
    compute: Literal["float32", "bfloat16"] = "float32",
) -> Iterator[str]:
    """The pieces of text that :func:`generate` joins, as they are made.

    Args:
        recommended: fill in what the model's ``generation_config.json`` recommends.

    The other arguments are those of :func:`generate`.
    """
    from ziggurat.serve.llm import LLM, EngineConfig, SamplingParams
    from ziggurat.serve.llm.image_reader import ImageLimits

    SamplingParams(**sampling)  # a wrong one is told before the model is read
    limits = {"max_sequence_length": max_sequence_length, "max_running": 1}
    settings = config.from_plain(EngineConfig, limits, "generate")
    pictures = ImageLimits(count=max(1, len(images)))
    precision = Precision(compute, compute)
    with LLM(model, settings, precision=precision, images=pictures) as llm:
        ids, embedded = _prompt(llm, prompt, chat, images)
        told = llm.sampling_defaults if recommended else {}
        given = SamplingParams(**{**told, **sampling})
        for event in llm.engine.submit(ids, given, images=embedded):
            yield event.text


def _prompt(llm: Any, prompt: str, chat: bool, images: Sequence[Any]) -> tuple[list[int], Any]:
    """Token ids of a prompt, and its images as the engine takes them."""
    from ziggurat.serve.llm.render import render_chat

    reader = llm.images
    if images and reader is None:
        raise ModelError(
            f"model {llm.name}",
            found="a model that reads no images",
            expected="one that does, with the settings of its image processor",
        )
    prepared = reader.prepare(images) if images else []
    expand = functools.partial(reader.expanded, images=prepared) if images else None
    if chat:
        text = prompt.strip()
        parts = [*[{"type": "image"}] * len(images), {"type": "text", "text": text}]
        messages = [{"role": "user", "content": parts if images else text}]
        ids = render_chat(llm.tokenizer, messages, expand=expand)
    else:
        ids = llm.tokenizer.encode(expand(prompt) if expand else prompt, add_special_tokens=True)
    return ids, reader.embedded(ids, prepared) if images else None


def export(
    model: str | Path,
    output: str | Path,
    *,
    dtype: FloatType | None = None,
    max_shard_gb: float = 5.0,
    quantization: QuantizedLayout | None = None,
) -> Path:
    """Write a model as others read it: a language model or encoder as transformers does, a
    diffusion model as diffusers does.

    Args:
        model: a path as for :func:`load`.
        output: new directory.
        dtype: type of the stored weights; default each weight's own, of quantised ones float32,
            which holds their values.
        max_shard_gb: largest safetensors file, in GB.
        quantization: keep the quantised matrices of a language model so, in this layout:
            ``compressed-tensors``, ``gptq`` or ``awq``.

    Returns:
        The directory.

    Raises:
        ModelError, CheckpointError: as :func:`load`, or the output is not empty.
        ConfigError: the layout does not fit the model.
    """
    path = hub.local(model)
    kind = "diffusers" if _draws(path) else "hf"
    return write(path, Path(output), kind, dtype, max_shard_gb, quantization)[1]


def write(
    model: Path,
    output: Path,
    kind: Literal["hf", "gguf", "diffusers"],
    dtype: FloatType | None,
    max_shard_gb: float,
    quantization: QuantizedLayout | None = None,
) -> tuple[str, Path]:
    """Write a model in the form of transformers, llama.cpp or diffusers; returns where it was read
    from and what was written."""
    if quantization is not None and dtype is not None:
        raise ConfigError(
            "export --dtype",
            found=dtype,
            expected="no dtype with --quantization: scales and floats keep their types",
        )
    other = pretrained_kinds.kind_of(model) if kind == "hf" else None
    if quantization is not None and (other is not None or kind == "diffusers"):
        raise ConfigError(
            "export --quantization", found=quantization, expected="a language model with it"
        )
    precision = Precision(param=dtype or "float32", as_stored=dtype is None)
    shard = int(max_shard_gb * 10**9)
    if kind == "diffusers":
        pipeline = pretrained_pipeline.load(model, precision=precision)
        path = diffusers_layout.export(pipeline, output, max_shard_bytes=shard)
        return pipeline.source, path
    if kind == "gguf":
        language = pretrained.load(model, precision=precision)
        return language.source, gguf_output.export_gguf(language, output)
    if other is not None:
        read = other.load(model, precision=precision)
        return read.source, other.export_hf(read, output, max_shard_bytes=shard)
    loaded = pretrained.load(model, precision=precision, expand=dtype is not None)
    path = pretrained.export_hf(loaded, output, max_shard_bytes=shard, layout=quantization)
    return loaded.source, path


def _draws(path: Path) -> bool:
    """Whether a directory holds a diffusion model."""
    step = step_files.step_directory(path) if path.is_dir() else None
    if step is not None:
        return (step / step_files.DIFFUSION_FILE).is_file()
    return diffusers_layout.is_diffusers(path)
