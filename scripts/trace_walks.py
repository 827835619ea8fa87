"""Count the files of the package that three walks enter: a batch from file to loss, a request from
HTTP to token, a weight from a published file to its module: ``python scripts/trace_walks.py``.

Each walk really runs, on a tiny model; ``sys.setprofile`` notes the files of the package that are
entered, in order. Importing and building models is left out, calls inside the walk are not.
"""

import contextlib
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1] / "src" / "ziggurat"


@contextlib.contextmanager
def traced(files: dict[str, str]) -> Iterator[None]:
    """Note each file that is entered, with the first function."""

    def note(frame: Any, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(str(ROOT)) and frame.f_code.co_name != "<module>":
            files.setdefault(str(Path(name).relative_to(ROOT)), frame.f_code.co_qualname)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def tiny_directory(path: Path) -> Path:
    """A tiny Llama as Hugging Face publishes one."""
    import jax

    from ziggurat.data.tokenizers import byte_level
    from ziggurat.models import LanguageModel, LlamaConfig
    from ziggurat.models.loading import pretrained

    config = LlamaConfig(vocab_size=257, d_model=16, n_layers=2, n_heads=2, max_sequence_length=64)
    model = LanguageModel.build(config)
    tokenizer = byte_level({"eos_token": "<|end|>"})
    made = pretrained.Pretrained(model, model.init(jax.random.key(0)), tokenizer, "tiny", "")
    pretrained.export_hf(made, path)
    return path


def batch(directory: Path, files: dict[str, str]) -> None:
    """From a run's prepared documents to the loss of a batch; preparing is :func:`documents`."""
    made = documents(directory, {})
    import jax

    with traced(files):
        rows = made.place(made.data.batch(0, slice(0, 2)))
        _, metrics = made.step(made.initial(), rows)
        jax.block_until_ready(metrics)


def documents(directory: Path, files: dict[str, str]) -> Any:
    """From a text file to a prepared experiment: tokenizer, token store, model, optimizer."""
    from ziggurat.core import config
    from ziggurat.train import experiment
    from ziggurat.train.config import RunConfig

    directory.mkdir()
    text = directory / "corpus.txt"
    text.write_text("Es war einmal.\n" * 400, encoding="utf-8")
    run = config.parse(
        RunConfig,
        f"""
        name = "walk"
        output = "{directory}"
        [model]
        kind = "llama"
        vocab_size = 257
        d_model = 16
        n_layers = 2
        n_heads = 2
        [data]
        batch_size = 2
        sequence_length = 32
        sources = [{{ kind = "text", path = "{text}" }}]
        [tokenizer]
        kind = "train_bpe"
        vocab_size = 257
        [optimizer]
        kind = "adamw"
        lr = 1e-3
        [train]
        steps = 1
        """,
    ).value
    with traced(files):
        return experiment.prepare(run)


def request(directory: Path, files: dict[str, str]) -> None:
    """From a body of ``/v1/completions`` to the text of its tokens."""
    from prometheus_client import CollectorRegistry
    from starlette.testclient import TestClient

    from ziggurat.serve.app import build_app
    from ziggurat.serve.composition import Generator, openai_parts
    from ziggurat.serve.llm import LLM, EngineConfig

    settings = EngineConfig(max_sequence_length=32, max_running=1)
    with LLM(str(directory), settings) as llm:
        registry = CollectorRegistry()
        app = build_app(openai_parts(registry, Generator("tiny", llm.engine)), registry)
        llm.engine.warm_up()
        with traced(files), TestClient(app) as client:
            asked = {"model": "tiny", "prompt": "ab", "max_tokens": 4}
            assert client.post("/v1/completions", json=asked).status_code == 200


def weight(directory: Path, files: dict[str, str]) -> None:
    """From a directory of safetensors to parameters of the module."""
    from ziggurat.models.loading import pretrained

    with traced(files):
        pretrained.load(str(directory))


def main() -> None:
    """Run the walks and print their files."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        published = tiny_directory(directory / "tiny")
        for title, walk, place in [
            ("one run, from a text file to a prepared experiment", documents, directory / "run"),
            ("one batch, from the token store to the loss", batch, directory / "other"),
            ("one request, from HTTP to token", request, published),
            ("one weight, from file to module", weight, published),
        ]:
            files: dict[str, str] = {}
            walk(place, files)
            print(f"{title}: {len(files)} files")
            for file, function in files.items():
                print(f"  {file}: {function}")


if __name__ == "__main__":
    main()
