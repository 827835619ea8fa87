"""Ids that llama.cpp gives to texts with tokenizers of GGUF files of every kind.

``python -m tests.oracle.llama_cpp_tokenizers --write`` writes the table, with the package xllamacpp
(llama.cpp's server in a wheel); without ``--write`` it compares.
"""

import base64
import json
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tests.oracle import tokenizer_files

from ziggurat.formats.gguf_pre_tokenizers import PRE_TOKENIZERS
from ziggurat.formats.sentencepiece_model import CONTROL, NORMAL, read_sentencepiece
from ziggurat.formats.tokenizer_document import BYTE_CHARACTERS, SPACE, merges_of

STORED = Path(__file__).with_name("llama_cpp_tokenizers.npz")
WORDS = ("hello", "world", "the", "##s", "##ing", "un", "##believ", "##able", "cafe", "1", "##2")
KINDS = ("llama", "llama-no-prefix", "t5", "bert", *PRE_TOKENIZERS)


def texts() -> list[str]:
    """Texts of the other tables, and some with special tokens."""
    return [*tokenizer_files.texts(), "Hello, unbelievable CAFÉ worlds! 12", "a</s> b<s>c"]


def vocabulary(kind: str) -> dict[str, Any]:
    """Metadata below ``tokenizer.ggml.``."""
    files, _ = tokenizer_files.load()
    if kind.startswith("llama") and kind not in PRE_TOKENIZERS:
        prefix = kind == "llama"
        return _sentencepiece(files["llama"], "llama") | {"add_space_prefix": prefix}
    if kind == "t5":
        found = _sentencepiece(files["unigram"], "t5")
        return found | {"add_space_prefix": True, "remove_extra_whitespaces": True}
    if kind == "bert":
        return _word_piece()
    lines = (line.split() for line in files["ranks"].splitlines())
    tokens = ["".join(BYTE_CHARACTERS[b] for b in base64.b64decode(token)) for token, _ in lines]
    ids = {token: n for n, token in enumerate(tokens)}
    merges = merges_of((token for token in tokens if len(token) > 1), ids)
    return {
        "model": "gpt2",
        "pre": kind,
        "tokens": [*tokens, "<s>", "</s>"],
        "token_type": [NORMAL] * len(tokens) + [CONTROL] * 2,
        "merges": [" ".join(pair) for pair in merges],
        "bos_token_id": len(tokens),
        "eos_token_id": len(tokens) + 1,
        "seperator_token_id": len(tokens) + 1,
    }


def _sentencepiece(content: bytes, model: str) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        file.write(content)
        file.flush()
        read = read_sentencepiece(Path(file.name))
    return {
        "model": model,
        "pre": "default",
        "tokens": list(read.pieces),
        "scores": [float(score) for score in read.scores],
        "token_type": list(read.types),
        "bos_token_id": read.bos_id,
        "eos_token_id": read.eos_id,
        "unknown_token_id": read.unknown_id,
        **({"precompiled_charsmap": list(read.charsmap)} if read.charsmap else {}),
    }


def _word_piece() -> dict[str, Any]:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'()*:;_/-"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*letters, *(f"##{c}" for c in letters if c.isalnum()), *WORDS, *"\u5317\u4eac"]
    words = list(dict.fromkeys(words))
    named = [w[2:] if w.startswith("##") else SPACE + w for w in words]
    return {
        "model": "bert",
        "pre": "default",
        "tokens": [*special, *named],
        "token_type": [CONTROL] * len(special) + [NORMAL] * len(named),
        "padding_token_id": 0,
        "unknown_token_id": 1,
        "bos_token_id": 2,
        "cls_token_id": 2,
        "seperator_token_id": 3,
        "eos_token_id": 3,
    }


def write_model(path: Path, kind: str) -> None:
    """A tiny random model with this tokenizer, which llama.cpp loads."""
    entries, draw = vocabulary(kind), np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {"context_length": 64, "embedding_length": 32, "block_count": 1}
    sizes |= {"feed_forward_length": 32, "attention.head_count": 2, "rope.dimension_count": 16}
    for key, size in sizes.items():
        writer.add_uint32(f"llama.{key}", size)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in entries.items():
        name = f"tokenizer.ggml.{key}"
        if key == "precompiled_charsmap":
            writer.add_precompiled_charsmap(bytes(value))
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            (writer.add_bool if isinstance(value, bool) else writer.add_uint32)(name, value)
    shapes = {f"blk.0.{name}": (32, 32) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    shapes |= {f"blk.0.{name}": (32, 32) for name in ("ffn_gate", "ffn_up", "ffn_down")}
    shapes |= {"blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,), "output_norm": (32,)}
    shapes |= {"token_embd": (len(entries["tokens"]), 32)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def measure(kind: str, path: Path) -> list[list[int]]:
    """llama.cpp's ids of all texts, with special tokens."""
    import xllamacpp  # pyright: ignore[reportMissingImports]

    write_model(path, kind)
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(path), 64, 1
    params.warmup, params.verbosity = False, -1
    server = xllamacpp.Server(params)

    def ids(text: str) -> list[int]:
        body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        address = f"{server.listening_address}/tokenize"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]

    return [ids(text) for text in texts()]


def load() -> dict[str, list[list[int]]]:
    """The stored ids of all texts by kind."""
    found: dict[str, list[list[int]]] = {}
    with np.load(STORED) as stored:
        for kind in stored["alike"].tolist():
            kind, _, first = kind.partition(" ")
            if first:
                found[kind] = found[first]
                continue
            edges = np.cumsum(stored[f"counts/{kind}"])[:-1]
            found[kind] = [part.tolist() for part in np.split(stored[f"ids/{kind}"], edges)]
    return found


def main() -> None:
    """Write the table, or compare it with the package that is here."""
    made: dict[str, list[list[int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            try:
                made[kind] = measure(kind, Path(folder) / f"{kind}.gguf")
            except RuntimeError as error:
                print(f"{kind}: llama.cpp does not load it: {error}")
    if "--write" not in sys.argv:
        stored = load()
        differ = [kind for kind, ids in made.items() if ids != stored.get(kind)]
        sys.exit(f"other ids: {differ}" if differ else 0)
    arrays: dict[str, Any] = {}
    alike: list[str] = []
    for kind, rows in made.items():
        first = next(one for one in made if made[one] == rows)
        alike.append(kind if first == kind else f"{kind} {first}")
        if first != kind:
            continue
        arrays[f"ids/{kind}"] = np.array([n for row in rows for n in row], np.uint16)
        arrays[f"counts/{kind}"] = np.array([len(row) for row in rows], np.uint16)
    np.savez_compressed(STORED, alike=np.array(alike), **arrays)


if __name__ == "__main__":
    main()
