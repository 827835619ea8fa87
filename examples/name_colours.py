"""Teach a tiny model of images and text to name the colour of a square, and ask it about new ones.

The model is a LLaVA of 51 thousand parameters that knows nothing at first: it is written as a
Hugging Face directory, fine-tuned by ``ziggurat.train`` on conversations with pictures, and asked
about squares that it has not seen::

    python examples/name_colours.py
"""

import colorsys
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import jax
import tokenizers
from PIL import Image

import ziggurat
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.models import ClipImageConfig, LlamaConfig, LlavaConfig, VisionLanguageModel
from ziggurat.models.image_processor import ImageProcessorConfig
from ziggurat.models.loading import pretrained_vision_language
from ziggurat.models.loading.pretrained_vision_language import PretrainedVisionLanguage
from ziggurat.models.vision_language_generation import generate

HUES = {"red": 0.0, "yellow": 1 / 6, "green": 1 / 3, "cyan": 1 / 2, "blue": 2 / 3, "pink": 5 / 6}
QUESTION = "Which colour ?"
WORDS = ("<unk>", "</s>", "<image>", "user", "assistant", *QUESTION.split(), *HUES)
TEMPLATE = """{% for m in messages %}{{ m.role }} {% if m.content is string %}{{ m.content }} </s> \
{% else %}{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }} {% endfor %}\
{% endif %}{% endfor %}{{ 'assistant ' if add_generation_prompt else '' }}"""
RUN = """
name = "colours"
output = "HERE/run"
[model]
kind = "pretrained"
path = "HERE/tiny-llava"
[data]
kind = "image_text"
sources = [{ kind = "jsonl", path = "HERE/squares.jsonl", content = "image_messages" }]
sequence_length = 48
batch_size = 16
images_per_row = 4
[objective]
kind = "sft"
freeze_vision_tower = false
freeze_multi_modal_projector = false
[optimizer]
kind = "adamw"
lr = 2e-3
[train]
steps = 150
[report]
tensorboard = false
"""


def square(name: str, draw: random.Random) -> Image.Image:
    """A square of about a colour, somewhere on a grey ground."""
    hue = (HUES[name] + draw.uniform(-0.05, 0.05)) % 1
    colour = colorsys.hsv_to_rgb(hue, draw.uniform(0.7, 1), draw.uniform(0.7, 1))
    picture = Image.new("RGB", (32, 32), (draw.randint(60, 200),) * 3)
    side = draw.randint(14, 22)
    at = draw.randint(0, 32 - side), draw.randint(0, 32 - side)
    picture.paste(tuple(round(255 * part) for part in colour), (*at, at[0] + side, at[1] + side))
    return picture


def write_model(directory: Path) -> None:
    """A fresh model of images and text as a Hugging Face directory."""
    made = directory / "words"
    made.mkdir()
    table = {word: number for number, word in enumerate(WORDS)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["</s>", "<image>"])
    backend.save(str(made / "tokenizer.json"))
    (made / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    (made / "chat_template.jinja").write_text(TEMPLATE)
    image = ClipImageConfig(
        d_model=32, n_layers=1, n_heads=2, d_ff=64, image_size=(32, 32), patch_size=(8, 8)
    )
    language = LlamaConfig(
        vocab_size=len(WORDS), d_model=32, n_layers=2, n_heads=2, max_sequence_length=64
    )
    token = WORDS.index("<image>")
    config: Any = LlavaConfig(language=language, image=image, image_token=token)
    vision = VisionLanguageModel.build(config)
    params = vision.init(jax.random.key(0))
    settings: dict[str, Any] = {"height": 32, "width": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    whole = PretrainedVisionLanguage(
        model=vision.language,
        params=params["language"],
        tokenizer=HuggingFaceTokenizer.load(made),
        name="tiny-llava",
        source="drawn at random",
        vision=vision,
        tower=params["tower"],
        processor=ImageProcessorConfig(**settings),
    )
    pretrained_vision_language.export_hf(whole, directory / "tiny-llava")
    print(f"tiny-llava: {vision.parameter_count:,} parameters")


def write_records(directory: Path, count: int = 600) -> None:
    """Conversations about one square each."""
    draw, lines = random.Random(0), []
    (directory / "squares").mkdir()
    for number in range(count):
        name = draw.choice([*HUES])
        square(name, draw).save(directory / f"squares/{number}.png")
        asked = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        talk = [{"role": "user", "content": asked}, {"role": "assistant", "content": name}]
        lines.append(json.dumps({"messages": talk, "images": [f"squares/{number}.png"]}) + "\n")
    (directory / "squares.jsonl").write_text("".join(lines))


def answers(whole: PretrainedVisionLanguage, pictures: list[Image.Image]) -> list[str]:
    """The most likely word about each picture, asked together."""
    asked = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = whole.tokenizer.apply_chat_template([{"role": "user", "content": asked}], None, True)
    images = whole.prepare(pictures)
    rows = [whole.tokens_of(text, [image]) for image in images]
    prompt = whole.prompt(rows, [[image] for image in images])
    return [
        whole.tokenizer.decode(row).strip()
        for row in generate(whole.vision, whole.params, prompt, max_new_tokens=1)
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write_model(directory)
        write_records(directory)
        (directory / "colours.toml").write_text(RUN.replace("HERE", folder))
        outcome = ziggurat.train(directory / "colours.toml")
        trained = pretrained_vision_language.load(outcome.directory.path)
        names = [*HUES] * 10
        draw = random.Random(1)
        found = answers(trained, [square(name, draw) for name in names])
    right = sum(answer == name for answer, name in zip(found, names))
    print(f"{right / len(names):.0%} of {len(names)} new squares are named rightly")


if __name__ == "__main__":
    main()
