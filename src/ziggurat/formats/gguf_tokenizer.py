"""A ``tokenizers`` JSON document from the tokenizer's pieces in a GGUF file.

A GGUF file names its text splitting rule instead of carrying it; the rules here are those of the
tokenizers the names stand for.
"""

import json
from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import CheckpointError, did_you_mean
from ziggurat.formats import tokenizer_document as parts
from ziggurat.formats.gguf_file import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    GgufTokenizer,
)
from ziggurat.formats.split_patterns import LLAMA_3, QWEN_2

_PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": parts.byte_level(True),
    "llama-bpe": parts.split(LLAMA_3),
    "dbrx": parts.split(LLAMA_3),
    "qwen2": parts.split(QWEN_2),
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, parts.byte_level(True)],
    },
}


def byte_level_bpe(pieces: GgufTokenizer) -> str:
    """A byte-level BPE tokenizer as JSON for ``tokenizers.Tokenizer.from_str``.

    Known pre-tokenizers are ``gpt-2``, ``llama-bpe`` (Llama 3), ``dbrx`` (Llama 3's, but merging
    alone makes words), ``qwen2`` and ``smollm``. Control
    tokens become special added tokens, user-defined ones plain added tokens. With ``add_bos`` or
    ``add_eos``, encoding with special tokens puts these ids around the text. As the models' own
    tokenizers do, Llama 3 takes whole words of the vocabulary before it merges and starts with its
    bos token, Qwen 2 goes to NFC, and SmolLM splits off every digit (transformers 5.23 omits that
    for GGUF files, which shows where a number follows a space).

    Raises:
        CheckpointError: another kind of tokenizer, or an unknown pre-tokenizer; both are named.
    """
    if pieces.model != "gpt2":
        raise CheckpointError(
            "GGUF tokenizer.ggml.model",
            found=pieces.model,
            expected="gpt2 (byte-level BPE)",
            fix="use the model's own tokenizer.json",
        )
    if pieces.pre_tokenizer not in _PRE_TOKENIZERS:
        raise CheckpointError(
            "GGUF tokenizer.ggml.pre",
            found=pieces.pre_tokenizer,
            expected="one of " + ", ".join(_PRE_TOKENIZERS),
            fix=did_you_mean(pieces.pre_tokenizer, _PRE_TOKENIZERS)
            or "use the model's own tokenizer.json",
        )
    llama_3 = pieces.pre_tokenizer == "llama-bpe"
    added = [
        parts.added_token(index, token, kind == CONTROL)
        for index, (token, kind) in enumerate(zip(pieces.tokens, pieces.token_types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    vocabulary = {token: index for index, token in enumerate(pieces.tokens)}
    before = _special(pieces, "bos", llama_3 if pieces.add_bos is None else pieces.add_bos)
    after = _special(pieces, "eos", pieces.add_eos)
    document = parts.document(
        parts.bpe(vocabulary, pieces.merges, ignore_merges=llama_3),
        added=added,
        normalizer={"type": "NFC"} if pieces.pre_tokenizer == "qwen2" else None,
        pre_tokenizer=_PRE_TOKENIZERS[pieces.pre_tokenizer],
        post_processor=parts.around(before, after) or parts.byte_level(True),
        decoder=parts.byte_level(True),
    )
    return json.dumps(document, ensure_ascii=False)


def _special(pieces: GgufTokenizer, role: str, asked: bool | None) -> tuple[str, int] | None:
    """A token that is put around texts, if ``asked``."""
    if not asked:
        return None
    index = pieces.bos_id if role == "bos" else pieces.eos_id
    if index is None:
        raise CheckpointError(
            f"GGUF tokenizer.ggml.{role}_token_id",
            found="no such key",
            expected=f"an id, as tokenizer.ggml.add_{role}_token is true",
        )
    return pieces.tokens[index], index


def pieces_of(
    document: str,
    *,
    size: int,
    ids: Mapping[str, int | None],
    adds: tuple[bool, bool],
    chat_template: str | None,
) -> GgufTokenizer:
    """The pieces of a byte-level BPE tokenizer: the reverse of :func:`byte_level_bpe`.

    Args:
        document: JSON of ``tokenizers``.
        size: rows of the model's vocabulary; ids that no token has become unused ones.
        ids: of special tokens by role: ``bos``, ``eos``, ``eot``, ``unknown``, ``padding``.
        adds: whether encoding puts the bos token before a text, and the eos token behind it.
        chat_template: Jinja source.

    Raises:
        CheckpointError: another kind of tokenizer, or a pre-tokenizer that GGUF has no name for
            here.
    """
    values = json.loads(document)
    model = values["model"]
    rule = next((name for name in _PRE_TOKENIZERS if _is_rule(name, values)), None)
    if model["type"] != "BPE" or rule is None:
        before = json.dumps({key: values.get(key) for key in ("normalizer", "pre_tokenizer")})
        kind = model["type"] if model["type"] != "BPE" else before
        raise CheckpointError(
            "GGUF tokenizer",
            found=kind if len(kind) <= 120 else kind[:117] + "...",
            expected="byte-level BPE with the pre-tokenizer of " + ", ".join(_PRE_TOKENIZERS),
            fix="export to hf, and convert with llama.cpp's convert_hf_to_gguf.py",
        )
    tokens = {number: token for token, number in model["vocab"].items()}
    types = dict.fromkeys(tokens, NORMAL)
    for added in values["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    every = range(max(size, len(tokens)))
    merges = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    return GgufTokenizer(
        model="gpt2",
        pre_tokenizer=rule,
        tokens=tuple(tokens.get(n, f"[UNUSED{n}]") for n in every),
        token_types=tuple(types.get(n, UNUSED) for n in every),
        merges=tuple((left, right) for left, right in merges),
        scores=(),
        bos_id=ids.get("bos"),
        eos_id=ids.get("eos"),
        eot_id=ids.get("eot"),
        unknown_id=ids.get("unknown"),
        padding_id=ids.get("padding"),
        add_bos=adds[0],
        add_eos=adds[1],
        chat_template=chat_template,
    )


def _is_rule(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a tokenizer cuts and merges text as this pre-tokenizer of GGUF's says."""
    whole_words = bool(values["model"].get("ignore_merges"))
    normal = {"type": "NFC"} if name == "qwen2" else None
    return (
        whole_words == (name == "llama-bpe")
        and values.get("normalizer") == normal
        and _bare(values["pre_tokenizer"]) == _bare(_PRE_TOKENIZERS[name])
    )


def _bare(rule: Any) -> Any:
    """A pre-tokenizer without what says nothing of ids."""
    if isinstance(rule, list):
        return [_bare(one) for one in rule]
    if not isinstance(rule, dict):
        return rule
    return {key: _bare(value) for key, value in rule.items() if key != "trim_offsets"}
