"""Tiny post-training runs over prompts, answers that are right and answers that are wrong."""

import json
from pathlib import Path
from typing import Any

import jax

from ziggurat.core import config
from ziggurat.data.tokenizers import byte_level
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.models.loading.pretrained import Pretrained, save
from ziggurat.train.config import RunConfig
from ziggurat.train.loop import train
from ziggurat.train.outcome import TrainingOutcome

MODEL = LlamaConfig(vocab_size=288, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64)
TEXT = """
name = "run"
seed = 3
data = {{ sources = [], sequence_length = 16, batch_size = 8 }}

[model]
kind = "pretrained"
path = "{base}"

[optimizer]
kind = "adamw"
lr = 3e-3
schedule = {{ kind = "constant" }}

[train]
steps = 30

[checkpoint]
every = 1000

[report]
tensorboard = false
"""
COUNT = 48
"""Records of each file."""


def fresh(directory: Path, seed: int = 0) -> Path:
    """An untrained model as a checkpoint."""
    model = LanguageModel.build(MODEL)
    params = model.init(jax.random.key(seed))
    save(Pretrained(model, params, byte_level(), "base", "drawn"), directory)
    return directory


def write_data(directory: Path) -> None:
    """The same answers as completions, as pairs, as pairs with margins, and with labels."""
    names = ("completions", "pairs", "margins", "labelled")
    files: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for n in range(COUNT):
        prompt, good, bad = f"{n * 37 % 100}?", f"yes {n % 10}", f"no {n % 10}"
        files["completions"].append({"prompt": prompt, "completion": good})
        files["pairs"].append({"prompt": prompt, "chosen": good, "rejected": bad})
        files["margins"].append(files["pairs"][-1] | {"margin": n / 8})
        label = n % 2 == 0
        said = good if label else bad
        files["labelled"].append({"prompt": prompt, "completion": said, "label": label})
    for name, records in files.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (directory / f"{name}.jsonl").write_text(text)


def source(directory: Path, name: str) -> str:
    """The override that names a file of :func:`write_data`."""
    pairs = {"pairs": "preference", "margins": "preference"}
    content = ({"completions": "prompt_completion"} | pairs).get(name, name)
    path = directory / f"{name}.jsonl"
    return f'data.sources=[{{kind = "jsonl", path = "{path}", content = "{content}"}}]'


def resolved(base: Path, *overrides: str) -> config.Resolved[RunConfig]:
    return config.parse(RunConfig, TEXT.format(base=base), overrides, source="run.toml")


def finish(base: Path, *overrides: str) -> TrainingOutcome:
    """Train to the end."""
    outcome = train(resolved(base, *overrides))
    assert outcome.finished
    return outcome
