"""Trained language models that read images, with tower and processor: from a Hugging Face directory
or a checkpoint of ours."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ziggurat.checkpoint import read_arrays
from ziggurat.checkpoint.manifest import read_manifest
from ziggurat.core import config, hub
from ziggurat.core.errors import ModelError
from ziggurat.core.pytrees import named_leaves
from ziggurat.data import HuggingFaceTokenizer, chat
from ziggurat.data.conversation import template_of
from ziggurat.data.template_input import with_parts
from ziggurat.formats import SafetensorsDirectory
from ziggurat.mesh import Layout
from ziggurat.models import adapters
from ziggurat.models.adapters import ADAPTER_FILE
from ziggurat.models.conversion import token_ids
from ziggurat.models.conversion.text_part import PartTensors
from ziggurat.models.conversion.weight_names import export_weights, import_weights
from ziggurat.models.families.family import family_of
from ziggurat.models.families.vision_language_family import (
    VISION_LANGUAGE,
    VisionLanguageFamily,
    vision_language_family,
    vision_language_family_of,
)
from ziggurat.models.image_processor import FILE as HF_PROCESSOR
from ziggurat.models.image_processor import TOGETHER
from ziggurat.models.language_model import PARAMS
from ziggurat.models.loading import hf_directory, pretrained, step_files
from ziggurat.models.loading.hf_directory import require_new, write_directory
from ziggurat.models.loading.placing import float_type, place_arrays, placement
from ziggurat.models.loading.step_files import VISION_FILE
from ziggurat.models.quantized import formats_of
from ziggurat.models.traced_model import Params
from ziggurat.models.vision_language_generation import generate
from ziggurat.models.vision_language_model import (
    ImagePrompt,
    PreparedImage,
    VisionLanguageModel,
    expanded,
)
from ziggurat.nn.precision import Precision

PROCESSOR_FILE = "picture_processor.json"
"""Inside a checkpoint step: how pictures become what the tower reads."""
TOWER = "tower"
"""Item of a checkpoint step: the parameters of the tower and its projector."""


@dataclasses.dataclass(frozen=True, repr=False, kw_only=True)
class PretrainedVisionLanguage(pretrained.Pretrained):
    """A language model with its weights and tokenizer, and the tower that reads images for it."""

    vision: VisionLanguageModel
    """The whole model; its language model is :attr:`model`."""
    tower: Params
    """Parameters of the tower and its projector."""
    processor: Any
    """Config node of the processor."""

    def prepare(self, pictures: Sequence[Any]) -> list[PreparedImage]:
        """Pictures as the tower reads them.

        Args:
            pictures: files' contents, paths, or pictures of Pillow.

        Raises:
            DataError: a picture cannot be decoded or is too large.
        """
        family = vision_language_family_of(self.vision.config)
        return family.prepare(self.vision.config, self.processor, pictures)

    def tokens_of(self, text: str, images: Sequence[PreparedImage]) -> list[int]:
        """Token ids of a text with images.

        Args:
            text: with the family's placeholder once for each image.
            images: in order.

        Raises:
            DataError: there are more or fewer placeholders than images.
        """
        return self.tokenizer.encode(self.expanded(text, images))

    def expanded(self, text: str, images: Sequence[PreparedImage]) -> str:
        """A text in which each image's placeholder is what its tokens are written as.

        Raises:
            DataError: there are more or fewer placeholders than images.
        """
        return expanded(self.vision.config, text, images, self.text_of)

    def prompt(
        self, tokens: Sequence[Sequence[int]], images: Sequence[Sequence[PreparedImage]]
    ) -> ImagePrompt:
        """Rows of tokens of one length with their images' embeddings."""
        return self.vision.prompt(self.tower, np.array(tokens, np.int32), images)

    def generate(self, text: str, pictures: Sequence[Any] = (), *, max_new_tokens: int = 64) -> str:
        """Continue a text with images by the most likely token, up to an end token.

        Args:
            text: with the family's placeholder once for each picture.
            pictures: files' contents, paths, or pictures of Pillow, in order.
            max_new_tokens: most tokens that are added.

        Raises:
            DataError: a picture cannot be read, or the placeholders are not as many.
            ShapeError: the text with its images would exceed the model's context.
        """
        images = self.prepare(pictures)
        prompt = self.prompt([self.tokens_of(text, images)], [images])
        ends = self.tokenizer.eos_ids
        [found] = generate(self.vision, self.params, prompt, max_new_tokens, ends)
        return self.tokenizer.decode([token for token in found if token not in ends])

    def answer(
        self, question: str, pictures: Sequence[Any] = (), *, max_new_tokens: int = 64
    ) -> str:
        """Answer a user's message with pictures before its text, by the most likely token.

        Args:
            question: text of the message.
            pictures: files' contents, paths, or pictures of Pillow, in order.
            max_new_tokens: most tokens of the answer.

        Raises:
            DataError: there is no chat template or none with a place for images, or a picture
                cannot be read.
            ShapeError: the message with its images would exceed the model's context.
        """
        template = template_of(self.tokenizer)
        parts = [*[{"type": "image"}] * len(pictures), {"type": "text", "text": question}]
        messages = [{"role": "user", "content": parts if pictures else question}]
        text = chat.render(
            template, with_parts(messages, template), None, True, **self.tokenizer.special_tokens
        )
        return self.generate(text, pictures, max_new_tokens=max_new_tokens)

    def text_of(self, token: int) -> str:
        """Text of a token of images."""
        text = self.tokenizer.backend.id_to_token(token)
        if text is None:
            raise ModelError(
                f"tokenizer of {self.name}",
                found=f"no token {token}",
                expected="the token that config.json names for images",
            )
        return text


def is_vision_language(path: Path) -> bool:
    """Whether a directory holds a language model that reads images, of a family that is read with
    them, with float weights and the settings of its processor; what it holds is looked at no
    further."""
    step = step_files.step_directory(path)
    if step is not None:
        return (step / VISION_FILE).is_file()
    file = path / "config.json"
    if not file.is_file() or not any((path / name).is_file() for name in (HF_PROCESSOR, TOGETHER)):
        return False
    values = hf_directory.hf_values(file)
    return "quantization_config" not in values and vision_language_family(values) is not None


def load(
    path: Path | str, *, precision: Precision | None = None, layout: Layout | None = None
) -> PretrainedVisionLanguage:
    """Read a trained language model that reads images, such as Gemma 3 or LLaVA.

    Args:
        path: a Hugging Face directory (``config.json``, ``preprocessor_config.json`` and
            safetensors), or a checkpoint that :func:`save` made.
        precision: parameter and compute types; default float32.
        layout: where parameters go; default the first device.

    Raises:
        ModelError: nothing of the kind is there, or the architecture, the processor or a switch is
            unknown.
        CheckpointError: weights are damaged, missing, or of another shape.
    """
    path = hub.local(path)
    step = step_files.step_directory(path) if path.is_dir() else None
    if step is not None:
        return _load_step(step, hub.name_of(path), precision, layout)
    file = path / "config.json"
    if not file.is_file():
        raise ModelError(
            f"model {path}", found="neither checkpoints nor config.json", expected="one of them"
        )
    values = hf_directory.hf_values(file)
    family = vision_language_family(values)
    if family is None:
        raise ModelError(
            f"model {path}",
            found="no model of images and text that is read with its images",
            expected="one of " + ", ".join(VISION_LANGUAGE),
        )
    processor = family.read_processor(path)
    text = pretrained.load_language(path, precision, layout)
    settings = family.from_hf(values, text.model.config)
    vision = VisionLanguageModel.build(settings, precision, text.model)
    tower = _tower(family, vision, PartTensors(SafetensorsDirectory(path), "image"), layout)
    return _together(text, vision, tower, processor)


def _together(
    text: pretrained.Pretrained, vision: VisionLanguageModel, tower: Params, processor: Any
) -> PretrainedVisionLanguage:
    parts = {field.name: getattr(text, field.name) for field in dataclasses.fields(text)}
    return PretrainedVisionLanguage(**parts, vision=vision, tower=tower, processor=processor)


def _tower(
    family: VisionLanguageFamily,
    vision: VisionLanguageModel,
    tensors: PartTensors,
    layout: Layout | None,
) -> Params:
    """The tower's parameters from its tensors."""
    shardings = {} if layout is None else vision.tower.shardings(layout)
    return import_weights(
        family.tower_names(vision.config),
        tensors,
        vision.tower.abstract,
        layers=vision.tower.n_layers,
        ignored=lambda name: family.ignored(vision.config, name),
        place=placement(shardings),
    )


def save(
    whole: PretrainedVisionLanguage, directory: Path, records: Mapping[str, Any] | None = None
) -> Path:
    """Write a model as a checkpoint of its own (``step_00000000``), which :func:`load` reads, and
    :func:`ziggurat.models.loading.pretrained.load` without its images.

    Raises:
        CheckpointError: there is a checkpoint already.
        ModelError: weights of the language model are quantised.
    """
    _refuse_quantized(whole)
    files = files_of(whole, whole.tokenizer)
    return step_files.save_new(
        directory, {PARAMS: whole.params, TOWER: whole.tower}, files, records
    )


def _refuse_quantized(whole: PretrainedVisionLanguage) -> None:
    if formats_of(whole.params):
        raise ModelError(
            f"model {whole.name}",
            found="a quantised language model that reads images",
            expected="float weights",
            fix="write its language model alone, or load it with expanded weights",
        )


def export_hf(
    whole: PretrainedVisionLanguage, directory: Path, *, max_shard_bytes: int = 5 * 10**9
) -> Path:
    """Write ``config.json``, safetensors, tokenizer and processor as transformers reads them.

    Raises:
        CheckpointError: the directory is there already.
        ModelError: the config has no counterpart there, or weights are quantised.
    """
    _refuse_quantized(whole)
    require_new(directory)
    family = vision_language_family_of(whole.vision.config)
    dtype = float_type(whole.params)
    ids = token_ids.special(whole.tokenizer, whole.token_ids)
    language = ids | family_of(whole.model.config).to_hf(whole.model.config)
    language |= {"dtype": dtype, "torch_dtype": dtype}
    files = {HF_PROCESSOR: family.write_processor(whole.processor)}
    if family.write_together is not None:
        files[TOGETHER] = family.write_together(whole.processor)
    return write_directory(
        directory,
        family.to_hf(whole.vision.config, language) | ids,
        _published(whole, family),
        dtype=dtype,
        tokenizer=whole.tokenizer,
        files=files | {"generation_config.json": ids | whole.tokenizer.generation_config},
        max_shard_bytes=max_shard_bytes,
    )


def files_of(whole: PretrainedVisionLanguage, tokenizer: Any) -> dict[str, bytes | Path]:
    """Files of a checkpoint step besides arrays, with which :func:`load` can read it alone.

    Args:
        whole: the model.
        tokenizer: that is saved with it.
    """
    files = step_files.files_of(whole.model.config, tokenizer)
    files[token_ids.FILE] = json.dumps(dict(whole.token_ids)).encode()
    for name, node in ((VISION_FILE, whole.vision.config), (PROCESSOR_FILE, whole.processor)):
        files[name] = json.dumps(config.to_plain(node), indent=2).encode()
    return files


def _published(
    whole: PretrainedVisionLanguage, family: VisionLanguageFamily
) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors by their names in published files."""
    names = family.text_names(whole.model.config)
    layers = whole.model.decoder.n_layers
    text = (
        (family.published_name("text", name), array)
        for name, array in export_weights(names, whole.params, layers=layers)
    )
    names, layers = family.tower_names(whole.vision.config), whole.vision.tower.n_layers
    image = (
        (family.published_name("image", name), array)
        for name, array in export_weights(names, whole.tower, layers=layers)
    )
    return itertools.chain(text, image)


def _with_adapters(
    step: Path, name: str, precision: Precision | None, layout: Layout | None
) -> PretrainedVisionLanguage:
    """The model of a step of adapters: its base with them added to the language model."""
    record = adapters.read_record(step)
    base = load(record.base, precision=precision, layout=layout)
    arrays = pretrained.read_adapters(step, base.model, record.lora)
    model, params = adapters.merge_into(base.model, base.params, arrays, record.lora)
    return dataclasses.replace(
        base,
        model=model,
        params=params,
        tokenizer=HuggingFaceTokenizer.load(step / step_files.TOKENIZER),
        vision=dataclasses.replace(base.vision, language=model),
        name=name,
        source=str(step),
    )


def _load_step(
    step: Path, name: str, precision: Precision | None, layout: Layout | None
) -> PretrainedVisionLanguage:
    file = step / VISION_FILE
    if not file.is_file():
        raise ModelError(
            f"model {step}", found="a model that reads no images", expected="one that reads images"
        )
    if (step / ADAPTER_FILE).is_file():
        return _with_adapters(step, name, precision, layout)
    values = json.loads(file.read_text())
    family = VISION_LANGUAGE[str(values.get("kind"))]
    settings = config.from_plain(family.config_class, values, str(file))
    processor_file = step / PROCESSOR_FILE
    plain = json.loads(processor_file.read_text())
    processor = config.from_plain(family.processor_class, plain, str(processor_file))
    vision = VisionLanguageModel.build(settings, precision)
    shardings = {} if layout is None else vision.shardings(layout)

    def read(arrays: Any, part: str) -> Params:
        placed = named_leaves(shardings[part]) if shardings else {}
        return place_arrays(step, arrays, vision.abstract[part], placed, precision)

    trained = pretrained.trained_arrays(step)
    apart = TOWER in read_manifest(step).items  # as save() writes it; a run trains one tree
    parts = {"language": trained, TOWER: read_arrays(step, TOWER)} if apart else trained
    params, tower = read(parts["language"], "language"), read(parts[TOWER], TOWER)
    tokenizer = HuggingFaceTokenizer.load(step / step_files.TOKENIZER)
    ids = token_ids.read(step)
    model = vision.language.typed_as(params)
    text = pretrained.Pretrained(model, params, tokenizer, name, str(step), ids)
    vision = VisionLanguageModel.build(settings, precision, model)
    return _together(text, vision, tower, processor)
