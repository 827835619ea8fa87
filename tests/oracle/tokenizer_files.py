"""Tokenizer files of sentencepiece and tiktoken, and the ids that these packages give to texts.

``python -m tests.oracle.tokenizer_files --write`` trains the models and writes the table, with the
packages sentencepiece 0.2 and tiktoken 0.14; without ``--write`` it compares.
"""

import base64
import io
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np

STORED = Path(__file__).with_name("tokenizer_files.npz")
ROOT = Path(__file__).parents[2]
ALIKE: dict[str, Any] = {"byte_fallback": True, "allow_whitespace_only_pieces": True}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        **ALIKE,
        "model_type": "bpe",
        "vocab_size": 700,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "character_coverage": 0.995,
        "split_digits": True,
        "user_defined_symbols": ["<|user|>", "<x>"],
        "control_symbols": ["<ctl>"],
    },
    "gemma": {
        **ALIKE,
        "model_type": "bpe",
        "vocab_size": 700,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "character_coverage": 0.99,
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "bos_piece": "<bos>",
        "eos_piece": "<eos>",
    },
    "plain_bpe": {
        "model_type": "bpe",
        "vocab_size": 600,
        "normalization_rule_name": "identity",
        "character_coverage": 0.99,
    },
    "unigram": {"model_type": "unigram", "vocab_size": 600, "character_coverage": 0.99},
    "unigram_bytes": {
        **ALIKE,
        "model_type": "unigram",
        "vocab_size": 700,
        "normalization_rule_name": "identity",
        "character_coverage": 0.99,
        "remove_extra_whitespaces": False,
    },
}
"""Settings of sentencepiece's trainer."""
PATTERNS = {
    "llama_3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def texts() -> list[str]:
    """Texts with all that tokenizers treat differently, and random mixtures of it."""
    fixed = [
        "",
        " ",
        "   ",
        " lead",
        "trail ",
        "\n",
        "a\nb\r\n\n c",
        "Hello, world! It's 1234 o'clock; we'LL see.",
        "  two  spaces   and\ttabs\t\t\n\n newlines \r\n end ",
        "naïve café Ångström 北京 こんにちは 안녕 мир عالم नमस्ते",
        "e\u0301 ﬁ ① ½ \U0001d518\U0001d52b 👩‍👩‍👧‍👦 🇩🇪 \u200b\u00a0x",
        "▁a ▁▁b",
        "\t\tx\t",
        "\uff11\uff12\uff21\uff22 \u01c5 \u1e9e \u0149 \ufdfa",
        "x" * 50,
        "the the" * 10,
        "def f(x):\n        return x**2  # ok\n",
    ]
    draw = random.Random(0)
    words = ["the", "of", "spaces", "model", "token", "'s", "don't", "2024", "\t", "\n", "", "▁"]

    def piece() -> str:
        kinds = (
            range(32, 0x24F),
            range(0x370, 0x1F00),
            range(0x4E00, 0x4F00),
            range(0x1F600, 0x1F640),
        )
        return draw.choice(
            [chr(draw.choice(draw.choice(kinds))), *draw.choices(words, k=3), " ", " "]
        )

    return fixed + ["".join(piece() for _ in range(draw.randrange(1, 40))) for _ in range(150)]


def corpus() -> list[str]:
    """Lines of this project's pages and of other scripts."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    other = (
        "naïve café Ångström 北京 こんにちは 안녕 мир عالم नमस्ते\ttab\t\ttab  two   three    spaces"
    )
    return lines[:4000] + [other] * 30


def train(settings: dict[str, Any]) -> bytes:
    """A model of sentencepiece as it writes it."""
    import sentencepiece  # pyright: ignore[reportMissingImports]

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=written,
        minloglevel=2,
        shuffle_input_sentence=False,
        **settings,
    )
    return written.getvalue()


def ranks() -> bytes:
    """A tiktoken file: the merges of byte-level BPE on the corpus, in their order."""
    from ziggurat.data.tokenizers import train_bpe
    from ziggurat.formats.tokenizer_document import BYTE_CHARACTERS

    vocabulary = train_bpe(corpus(), 900, {}).backend.get_vocab()
    ordered = sorted(vocabulary, key=lambda token: vocabulary[token])
    tokens = [bytes(BYTE_CHARACTERS.index(c) for c in token) for token in ordered]
    return b"".join(base64.b64encode(t) + b" %d\n" % n for n, t in enumerate(tokens))


def measure(made: dict[str, bytes]) -> dict[str, list[list[int]]]:
    """Ids of all texts by each model, and by tiktoken with each pattern."""
    import sentencepiece  # pyright: ignore[reportMissingImports]
    import tiktoken  # pyright: ignore[reportMissingImports]

    found = {}
    for name in MODELS:
        processor = sentencepiece.SentencePieceProcessor(model_proto=made[name])
        found[name] = [processor.encode(text) for text in texts()]
    lines = (line.split() for line in made["ranks"].splitlines())
    table = {base64.b64decode(token): int(rank) for token, rank in lines}
    for name, pattern in PATTERNS.items():
        encoding = tiktoken.Encoding(
            name, pat_str=pattern, mergeable_ranks=table, special_tokens={}
        )
        found[name] = [encoding.encode(text) for text in texts()]
    return found


def load() -> tuple[dict[str, bytes], dict[str, list[list[int]]]]:
    """The stored files by name, and the stored ids of all texts."""
    files, ids = {}, {}
    with np.load(STORED) as stored:
        for key in stored.files:
            kind, _, name = key.partition("/")
            if kind == "file":
                files[name] = stored[key].tobytes()
            elif kind == "ids":
                edges = np.cumsum(stored[f"counts/{name}"])[:-1]
                ids[name] = [part.tolist() for part in np.split(stored[key], edges)]
    return files, ids


def main() -> None:
    """Write the table, or compare it with the packages that are here."""
    if "--write" not in sys.argv:
        made, stored = load()
        differ = [name for name, ids in measure(made).items() if ids != stored[name]]
        sys.exit(f"other ids: {differ}" if differ else 0)
    made = {name: train(settings) for name, settings in MODELS.items()} | {"ranks": ranks()}
    arrays: dict[str, Any] = {
        f"file/{name}": np.frombuffer(content, np.uint8) for name, content in made.items()
    }
    for name, rows in measure(made).items():
        arrays[f"ids/{name}"] = np.array([n for row in rows for n in row], np.uint16)
        arrays[f"counts/{name}"] = np.array([len(row) for row in rows], np.uint16)
    np.savez_compressed(STORED, **arrays)


if __name__ == "__main__":
    main()
