"""Tiny models of images and text as Hugging Face directories, and conversations about coloured
squares to train them on."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import jax
from PIL import Image
from tests.oracle import multimodal

from ziggurat.core import config
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.models.conversion.text_part import MULTIMODAL_TYPES
from ziggurat.models.families.vision_language_family import vision_language_family
from ziggurat.models.loading import pretrained, pretrained_vision_language
from ziggurat.models.loading.pretrained_vision_language import PretrainedVisionLanguage
from ziggurat.models.vision_language_model import VisionLanguageModel
from ziggurat.train.config import RunConfig

QWENS = ("qwen2_5_vl", "qwen3_5")
MARKS = {
    "gemma3": {"t58": "<b>", "t59": "<e>", "t60": "<i>"},
    "llava": {"t60": "<image>"},
    "mistral3": {"t58": "[IMG_BREAK]", "t59": "[IMG_END]", "t60": "[IMG]"},
    **{kind: {"t58": "<v>", "t59": "</v>", "t60": "<image>", "t61": "<video>"} for kind in QWENS},
}
"""Texts of the tokens of images."""
WRITTEN = {
    "gemma3": "<b>",
    "llava": "<image>",
    "mistral3": "[IMG]",
    **dict.fromkeys(QWENS, "<v> <image> </v>"),
}
"""What a chat template writes for an image."""
CHANGES: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"vision_config": multimodal.CONFIGS["qwen2_5_vl"]["vision_config"]
                   | {"window_size": 16, "depth": 2, "fullatt_block_indexes": [1]}},
    "mistral3": {"vision_config": multimodal.CONFIGS["mistral3"]["vision_config"]
                 | {"patch_size": 4, "num_hidden_layers": 2}},
}  # fmt: skip
PROCESSORS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "image_processor_type": "Gemma3ImageProcessor",
        "size": {"height": 56, "width": 56},
        "image_seq_length": 4,
    },
    "llava": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28},
    },
    "mistral3": {"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 16}},
    **{
        kind: {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": 4,
            "merge_size": 2,
            "min_pixels": 64,
            "max_pixels": 1024,
        }
        for kind in QWENS
    },
}
BESIDE = {"mistral3": {"patch_size": 4, "spatial_merge_size": 2}}
"""Content of ``processor_config.json``, where there is one."""
COLOURS = {"t40": (220, 30, 30), "t41": (30, 200, 40), "t42": (30, 60, 220), "t43": (230, 210, 20)}
"""Names of colours, and the colours."""
ASK = "t5 t6 t7"
TEMPLATE = """{% for m in messages -%}
{{ 't50 ' if m.role == 'user' else 't51 ' }}
{%- if m.content is string %}{{ m.content }} {% else %}
{%- for p in m.content %}{{ 'IMAGE' if p.type == 'image' else p.text }} {% endfor %}{% endif %}
{%- if m.role == 'assistant' %}t2 {% endif %}
{%- endfor %}{{ 't51 ' if add_generation_prompt else '' }}"""


def publish(kind: str, directory: Path) -> Any:
    """Write a model with random weights, its tokenizer, template and processor; returns torch's."""
    model = multimodal.torch_model(kind, **CHANGES.get(kind, {}))
    model.save_pretrained(directory)
    describe(kind, directory)
    return model


def fresh(kind: str, directory: Path) -> Path:
    """Write a model with random weights like :func:`publish`, without torch."""
    directory.mkdir(parents=True)
    architecture = MULTIMODAL_TYPES[kind].architecture
    values = {"model_type": kind, "architectures": [architecture], **multimodal.CONFIGS[kind]}
    values |= CHANGES.get(kind, {})
    (directory / "config.json").write_text(json.dumps(values))
    describe(kind, directory)
    _, language = pretrained.hf_model(directory)
    family = vision_language_family(values)
    assert family is not None
    vision = VisionLanguageModel.build(family.from_hf(values, language.config))
    params = vision.init(jax.random.key(0))
    whole = PretrainedVisionLanguage(
        model=vision.language,
        params=params["language"],
        tokenizer=HuggingFaceTokenizer.load(directory),
        name="fresh",
        source="drawn",
        vision=vision,
        tower=params["tower"],
        processor=family.read_processor(directory),
    )
    return pretrained_vision_language.export_hf(whole, directory / "model")


def describe(kind: str, directory: Path) -> None:
    """Write tokenizer, template and processor."""
    multimodal.save_tokenizer(directory, **MARKS[kind])
    template = TEMPLATE.replace("IMAGE", WRITTEN[kind])
    (directory / "chat_template.jinja").write_text(template)
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[kind]))
    if kind in BESIDE:
        (directory / "processor_config.json").write_text(json.dumps(BESIDE[kind]))


def square(name: str, side: int = 32, wide: int | None = None) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", (wide or side, side), COLOURS[name])


def data_uri(picture: Image.Image) -> str:
    """A picture as OpenAI's clients send it."""
    held = io.BytesIO()
    picture.save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def write_records(directory: Path) -> Path:
    """Conversations in each form that is read: about one square, two, none."""
    (directory / "squares").mkdir(parents=True)
    for name in COLOURS:
        square(name).save(directory / f"squares/{name}.png")
    records: list[dict[str, Any]] = []
    for name in COLOURS:
        asked = [{"type": "image"}, {"type": "text", "text": ASK}]
        talk = [{"role": "user", "content": asked}, {"role": "assistant", "content": name}]
        records.append({"messages": talk, "images": [f"squares/{name}.png"]})
    first, second = list(COLOURS)[:2]
    asked = [
        {"type": "image", "path": f"squares/{first}.png"},
        {"type": "text", "text": "t8"},
        {"type": "image_url", "image_url": {"url": data_uri(square(second, 24, 40))}},
    ]
    said = {"role": "assistant", "content": f"{first} {second}"}
    records.append({"messages": [{"role": "user", "content": asked}, said]})
    plain = [{"role": "user", "content": "t9 t9"}, {"role": "assistant", "content": "t30 t31 t32"}]
    records.append({"messages": plain})
    path = directory / "squares.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


TEXT = """
name = "run"
seed = 3
output = "{output}"

[model]
kind = "pretrained"
path = "{model}"

[data]
kind = "image_text"
sources = [{{ kind = "jsonl", path = "{data}", content = "image_messages" }}]
sequence_length = 48
batch_size = 8
images_per_row = 3

[objective]
kind = "sft"

[optimizer]
kind = "adamw"
lr = 3e-3
schedule = {{ kind = "constant" }}

[train]
steps = 3

[checkpoint]
every = 1000

[report]
tensorboard = false
"""


def resolved(model: Path, data: Path, output: Path, *overrides: str) -> config.Resolved[RunConfig]:
    """The run file with overrides."""
    text = TEXT.format(model=model, data=data, output=output)
    return config.parse(RunConfig, text, overrides, source="run.toml")
