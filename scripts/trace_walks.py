"""Trace three walks through the package: a batch from file to loss, a request from HTTP to token, a
weight from a published file to its module: ``python scripts/trace_walks.py``.

Each walk really runs, on a tiny model. ``sys.setprofile`` notes every file of the package that is
entered, and the names of parameters that hold the carried thing: an argument that is it, or that
holds it one or two levels down (an attribute, an item). A batch and a weight are told by a shape
that nothing else of the walk has, a request by its text and by the ids of that text. Importing and
building models is left out.

``--package DIR`` traces another checkout's ``src/ziggurat``; it must be the one that is imported.
"""

import argparse
import contextlib
import dataclasses
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any

PROMPT = "zigzag"
"""Prompt of the request; no other text of the walk holds it."""
VOCABULARY, WIDTH = 257, 16
"""Rows and columns of the embedding, the weight that is followed."""
ROWS, LENGTH = 2, 32
"""Rows and tokens of the batch that is followed."""
MOST_ITEMS = 32
"""Entries of a container that are looked at."""
Carries = Callable[[Any], bool]


@dataclasses.dataclass
class Walk:
    """Files of the package that a walk entered, and names of what it carried."""

    root: Path
    """The package's folder."""
    carries: Carries
    """Whether a value is the carried thing."""
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    """The first function of each file that was entered."""
    names: dict[str, dict[str, None]] = dataclasses.field(default_factory=dict)
    """Names of parameters that held the carried thing, by file, in order."""

    @property
    def distinct(self) -> list[str]:
        """All those names, in order of first appearance."""
        return list(dict.fromkeys(name for found in self.names.values() for name in found))

    def note(self, frame: FrameType, event: str, _: object) -> None:
        """Note a call; for ``sys.setprofile``."""
        code = frame.f_code
        inside = code.co_filename.startswith(str(self.root))
        if event != "call" or not inside or code.co_name.startswith("<"):
            return
        file = str(Path(code.co_filename).relative_to(self.root))
        self.files.setdefault(file, code.co_qualname)
        for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
            seen = self.names.setdefault(file, {})
            if name in ("self", "cls") or name in seen or name not in frame.f_locals:
                continue
            if self._holds(frame.f_locals[name], 2):
                seen[name] = None

    def _holds(self, value: Any, depth: int) -> bool:
        if value is None or isinstance(value, (bool, int, float, type, ModuleType, FunctionType)):
            return False
        if self.carries(value):
            return True
        return depth > 0 and any(self._holds(part, depth - 1) for part in _parts(value))

    @contextlib.contextmanager
    def traced(self) -> Iterator[None]:
        """Note all calls of the block, in every thread."""
        threading.setprofile(self.note)
        sys.setprofile(self.note)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)


def _parts(value: Any) -> list[Any]:
    """Items or attributes of a value; of arrays and texts none."""
    if isinstance(value, (str, bytes)) or hasattr(value, "shape"):
        return []
    if isinstance(value, Mapping):
        return list(value.values())[:MOST_ITEMS] if isinstance(value, dict) else []
    if isinstance(value, (list, tuple)):
        return list(value[:MOST_ITEMS])
    names = getattr(value, "__struct_fields__", None)
    if names is not None:
        return [getattr(value, name) for name in names][:MOST_ITEMS]
    with contextlib.suppress(TypeError):
        return list(vars(value).values())[:MOST_ITEMS]
    return [getattr(value, name, None) for name in getattr(type(value), "__slots__", ())]


def of_shape(*shape: int) -> Carries:
    """Whether a value is an array, a tracer or a lazy tensor of this shape."""

    def carries(value: Any) -> bool:
        found = getattr(value, "shape", None)
        return isinstance(found, (tuple, list)) and tuple(found) == shape

    return carries


def of_prompt(ids: list[int]) -> Carries:
    """Whether a value is the prompt: in a body, as text, or as token ids."""

    def carries(value: Any) -> bool:
        if isinstance(value, str):
            return PROMPT in value
        if isinstance(value, bytes):
            return PROMPT.encode() in value
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], int):
            return list(value[: len(ids)]) == ids
        array = getattr(value, "ndim", 0) == 1 and hasattr(value, "tolist")
        return array and value.nbytes < 10**5 and value.tolist()[: len(ids)] == ids

    return carries


def _pretrained() -> Any:
    """The module that reads models; older commits have it elsewhere."""
    try:
        from ziggurat.models.loading import pretrained
    except ImportError:
        from ziggurat.models import pretrained  # pyright: ignore
    return pretrained


def tiny_directory(path: Path) -> Path:
    """A tiny Llama as Hugging Face publishes one."""
    import jax

    from ziggurat.data.tokenizers import byte_level
    from ziggurat.models import LanguageModel, LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, n_layers=2, n_heads=2, max_sequence_length=64
    )
    model = LanguageModel.build(config)
    tokenizer = byte_level({"eos_token": "<|end|>"})
    pretrained = _pretrained()
    made = pretrained.Pretrained(model, model.init(jax.random.key(0)), tokenizer, "tiny", "")
    pretrained.export_hf(made, path)
    return path


def prepared(directory: Path, walk: Walk) -> Any:
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
        vocab_size = {VOCABULARY}
        d_model = 16
        n_layers = 2
        n_heads = 2
        [data]
        batch_size = {ROWS}
        sequence_length = {LENGTH}
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
    with walk.traced():
        return experiment.prepare(run)


def batch(directory: Path, walk: Walk) -> None:
    """From a run's prepared documents to the loss of a batch; preparing is :func:`prepared`."""
    made = prepared(directory, Walk(walk.root, of_shape(-1)))
    import jax

    with walk.traced():
        rows = made.place(made.data.batch(0, slice(0, ROWS)))
        _, metrics = made.step(made.initial(), rows)
        jax.block_until_ready(metrics)


def request(directory: Path, walk: Walk) -> None:
    """From a body of ``/v1/completions`` to the text of its tokens."""
    from prometheus_client import CollectorRegistry
    from starlette.testclient import TestClient

    from ziggurat.serve.app import build_app
    from ziggurat.serve.composition import Generator, openai_parts
    from ziggurat.serve.llm import LLM, EngineConfig

    settings = EngineConfig(max_sequence_length=32, max_running=1)
    with LLM(str(directory), settings) as llm:
        walk.carries = of_prompt(llm.engine.tokenizer.encode(PROMPT))
        registry = CollectorRegistry()
        app = build_app(openai_parts(registry, Generator("tiny", llm.engine)), registry)
        llm.engine.warm_up()
        with walk.traced(), TestClient(app) as client:
            body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 4}
            assert client.post("/v1/completions", json=body).status_code == 200


def weight(directory: Path, walk: Walk) -> None:
    """From a directory of safetensors to parameters of the module."""
    with walk.traced():
        _pretrained().load(Path(directory))


def report(title: str, walk: Walk) -> None:
    """Print a walk: its figures, then each file with the names of what is carried there."""
    carrying = [file for file, names in walk.names.items() if names]
    print(
        f"{title}: {len(walk.files)} files entered; {len(carrying)} carry it, "
        f"under {len(walk.distinct)} names: {', '.join(walk.distinct)}"
    )
    for file, function in walk.files.items():
        names = ", ".join(walk.names.get(file, {}))
        print(f"  {file}: {function}" + (f" [{names}]" if names else ""))


def main() -> None:
    """Run the walks and print their files and names."""
    here = Path(__file__).parents[1] / "src" / "ziggurat"
    parser = argparse.ArgumentParser()
    parser.add_argument("--package", type=Path, default=here, help="folder of the package")
    root = parser.parse_args().package.resolve()
    tokens, embedding = of_shape(ROWS, LENGTH), of_shape(VOCABULARY, WIDTH)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        published = tiny_directory(directory / "tiny")
        for title, go, place, carries in [
            ("one run, from a text file to a prepared experiment", prepared, "run", of_shape(-1)),
            ("one batch, from the token store to the loss", batch, "other", tokens),
            ("one request, from HTTP to token", request, published, of_prompt([-1])),
            ("one weight, from file to module", weight, published, embedding),
        ]:
            walk = Walk(root, carries)
            go(directory / place, walk)
            report(title, walk)


if __name__ == "__main__":
    main()
