"""A ``tokenizers`` JSON document from the tokenizer's pieces in a GGUF file.

A GGUF file names its text splitting rule instead of carrying it; see
:mod:`ziggurat.formats.gguf_pre_tokenizers`.
"""

import json
from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import CheckpointError, did_you_mean
from ziggurat.formats import tokenizer_document as parts
from ziggurat.formats.gguf_file import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    GgufTokenizer,
)
from ziggurat.formats.gguf_pre_tokenizers import PRE_TOKENIZERS
from ziggurat.formats.sentencepiece_model import SentencePieceModel
from ziggurat.formats.sentencepiece_tokenizer import sentencepiece_document


def tokenizer_json(pieces: GgufTokenizer) -> str:
    """The tokenizer of a GGUF file as JSON for ``tokenizers.Tokenizer.from_str``.

    Raises:
        CheckpointError: a kind other than ``gpt2``, ``llama``, ``t5`` and ``bert``, or an unknown
            pre-tokenizer; both are named.
    """
    kinds = {
        "gpt2": byte_level_bpe,
        "llama": sentencepiece,
        "t5": sentencepiece,
        "bert": word_piece,
    }
    if pieces.model not in kinds:
        raise CheckpointError(
            "GGUF tokenizer.ggml.model",
            found=pieces.model,
            expected="one of " + ", ".join(kinds),
            fix="use the model's own tokenizer.json",
        )
    return json.dumps(kinds[pieces.model](pieces), ensure_ascii=False)


def byte_level_bpe(pieces: GgufTokenizer) -> dict[str, Any]:
    """JSON document of a byte-level BPE tokenizer.

    Control tokens become special added tokens, user-defined ones plain added tokens. With
    ``add_bos`` or ``add_eos``, encoding with special tokens puts these ids around the text. As the
    models' own tokenizers do, Llama 3 takes whole words of the vocabulary before it merges and
    starts with its bos token, Qwen 2 goes to NFC, and SmolLM splits off every digit (transformers
    5.23 omits that for GGUF files, which shows where a number follows a space).

    Raises:
        CheckpointError: an unknown pre-tokenizer; it is named.
    """
    name = pieces.pre_tokenizer
    if name not in PRE_TOKENIZERS:
        raise CheckpointError(
            "GGUF tokenizer.ggml.pre",
            found=name,
            expected="one of " + ", ".join(PRE_TOKENIZERS),
            fix=did_you_mean(name, PRE_TOKENIZERS) or "use the model's own tokenizer.json",
        )
    rule = PRE_TOKENIZERS[name]
    vocabulary = {token: index for index, token in enumerate(pieces.tokens)}
    around = _around(pieces, rule.starts, False, ("eos", pieces.eos_id))
    return parts.document(
        parts.bpe(vocabulary, pieces.merges, ignore_merges=rule.whole_words),
        added=_added(pieces),
        normalizer={"type": "NFC"} if rule.composed else None,
        pre_tokenizer=rule.document,
        post_processor=around or parts.byte_level(True),
        decoder=parts.byte_level(True),
    )


def sentencepiece(pieces: GgufTokenizer) -> dict[str, Any]:
    """JSON document of a SentencePiece tokenizer: BPE (``llama``) or Unigram (``t5``).

    As in llama.cpp a text behind a special token starts with a space too.

    Raises:
        CheckpointError: scores or the unknown token are missing.
    """
    unknown = pieces.unknown_id
    if unknown is None:
        unknown = next((n for n, kind in enumerate(pieces.token_types) if kind == UNKNOWN), None)
    if unknown is None or len(pieces.scores) != len(pieces.tokens):
        raise CheckpointError(
            "GGUF tokenizer.ggml.scores",
            found=f"{len(pieces.scores)} scores and unknown_token_id {unknown}",
            expected=f"{len(pieces.tokens)} scores, one for each token, and an unknown token",
        )
    bpe = pieces.model == "llama"
    asked = pieces.add_space_prefix
    prefix = bpe if asked is None else asked
    model = SentencePieceModel(
        kind="bpe" if bpe else "unigram",
        pieces=pieces.tokens,
        scores=pieces.scores,
        types=pieces.token_types,
        unknown_id=unknown,
        bos_id=pieces.bos_id,
        eos_id=pieces.eos_id,
        padding_id=pieces.padding_id,
        byte_fallback=bpe,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=bool(pieces.remove_extra_whitespaces) and not bpe,
        charsmap=b"" if bpe else pieces.charsmap,
    )
    document = sentencepiece_document(model, "always" if prefix else "never")
    document["post_processor"] = _around(pieces, bpe, not bpe, ("eos", pieces.eos_id))
    return document


def word_piece(pieces: GgufTokenizer) -> dict[str, Any]:
    """JSON document of a WordPiece tokenizer, whose pieces that start words have SentencePiece's
    space there, and the others no ``##``."""
    unknown = 100 if pieces.unknown_id is None else pieces.unknown_id
    names = [
        token
        if kind != NORMAL
        else token.removeprefix(parts.SPACE)
        if token.startswith(parts.SPACE)
        else f"##{token}"
        for token, kind in zip(pieces.tokens, pieces.token_types, strict=True)
    ]
    lower = pieces.lowercase is not False
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    model = {
        "type": "WordPiece",
        "unk_token": names[unknown],
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {token: index for index, token in enumerate(names)},
    }
    after = ("separator", pieces.eos_id if pieces.separator_id is None else pieces.separator_id)
    return parts.document(
        model,
        added=_added(pieces),
        normalizer=normalizer | {"strip_accents": lower, "lowercase": lower},
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=_around(pieces, True, True, after),
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )


def _added(pieces: GgufTokenizer) -> list[dict[str, Any]]:
    """Control and user-defined tokens, which a text may hold as such."""
    return [
        parts.added_token(index, token, kind == CONTROL)
        for index, (token, kind) in enumerate(zip(pieces.tokens, pieces.token_types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]


def _around(
    pieces: GgufTokenizer, starts: bool, ends: bool, last: tuple[str, int | None]
) -> dict[str, Any] | None:
    """Post-processor of the tokens around a text; the file's word counts before the defaults.

    Args:
        pieces: the tokenizer's pieces.
        starts: whether a text starts with bos if the file does not say.
        ends: whether it ends with ``last`` if the file does not say.
        last: role and id of the token behind a text.
    """
    asked = pieces.add_separator if last[0] == "separator" else pieces.add_eos
    before = (
        ("bos", pieces.bos_id) if (starts if pieces.add_bos is None else pieces.add_bos) else None
    )
    after = last if (ends if asked is None else asked) else None
    return parts.around(*(one and _special(pieces, *one) for one in (before, after)))


def _special(pieces: GgufTokenizer, role: str, index: int | None) -> tuple[str, int]:
    """A token that is put around texts."""
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
    rule = next((name for name in PRE_TOKENIZERS if _is_rule(name, values)), None)
    if model["type"] != "BPE" or rule is None:
        before = json.dumps({key: values.get(key) for key in ("normalizer", "pre_tokenizer")})
        kind = model["type"] if model["type"] != "BPE" else before
        raise CheckpointError(
            "GGUF tokenizer",
            found=kind if len(kind) <= 120 else kind[:117] + "...",
            expected="byte-level BPE with a pre-tokenizer that llama.cpp has",
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
    rule, normalizer = PRE_TOKENIZERS[name], values.get("normalizer")
    return (
        bool(values["model"].get("ignore_merges")) == rule.whole_words
        and normalizer == ({"type": "NFC"} if rule.composed else None)
        and _bare(values["pre_tokenizer"]) == _bare(rule.document)
    )


def _bare(rule: Any) -> Any:
    """A pre-tokenizer without what says nothing of ids."""
    if isinstance(rule, (list, tuple)):
        return [_bare(one) for one in rule]
    if not isinstance(rule, dict):
        return rule
    return {key: _bare(value) for key, value in rule.items() if key != "trim_offsets"}
