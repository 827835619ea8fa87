"""The files in which a model's directory holds its tokenizer.

``tokenizer.json`` counts before all others. Without it are read ``tokenizer.model`` of
SentencePiece or tiktoken, ``tiktoken.model``, ``*.tiktoken`` and ``tekken.json``, to the ids that
these programs give; ``tokenizer_config.json`` and ``added_tokens.json`` say what the files do not.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziggurat.core.errors import DataError
from ziggurat.formats import sentencepiece_model, tiktoken_files
from ziggurat.formats.sentencepiece_tokenizer import Prefix, sentencepiece_document
from ziggurat.formats.split_patterns import LLAMA_3, QWEN_2
from ziggurat.formats.tokenizer_document import added_token

if TYPE_CHECKING:
    import tokenizers

Settings = dict[str, Any]
"""Content of ``tokenizer_config.json``."""

NAMES = ("tokenizer.json", "tokenizer.model", "tiktoken.model", "*.tiktoken", "tekken.json")
"""Files of tokenizers; of several the first counts."""

_RANKS: Mapping[str, tuple[str, bool, tuple[str, ...]]] = {
    "": (LLAMA_3, True, ()),
    "PreTrainedTokenizer": (LLAMA_3, True, ()),
    "TokenizersBackend": (LLAMA_3, True, ()),
    "LlamaTokenizer": (LLAMA_3, True, ()),
    "ChatGLM4Tokenizer": (LLAMA_3, False, ()),
    "QWenTokenizer": (
        QWEN_2,
        False,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{n}|>" for n in range(205))),
    ),
}
"""By tokenizer class, what stands in code rather than in its tiktoken file: the pattern of words,
whether a text starts with the bos token, and the special tokens behind the ranks. Sources: Meta's
llama3 repository, tokenization_chatglm.py of glm-4-9b-chat, tokenization_qwen.py of Qwen-7B."""
_OTHER_IDS = frozenset(
    {
        *("XLMRoberta", "Camembert", "MBart", "MBart50", "Nllb", "SeamlessM4T", "Barthez", "XGLM"),
        *("Pegasus", "Albert", "XLNet", "BigBird", "RemBert", "DebertaV2", "Reformer", "FNet"),
        *("Marian", "M2M100", "PLBart", "Speech2Text", "BertGeneration", "SpeechT5", "Udop"),
        "GPTSw3",
    }
)
"""Tokenizer classes, without their ending, whose ids or special tokens are not SentencePiece's."""


def read(directory: Path, settings: Settings) -> tuple["tokenizers.Tokenizer", Settings]:
    """Read the tokenizer of a directory, and its settings with the roles of special tokens.

    Args:
        directory: where the files are.
        settings: content of its ``tokenizer_config.json``.

    Raises:
        DataError: there is no such file, or it does not fit the settings.
        CheckpointError: a file other than ``tokenizer.json`` is damaged or of another kind.
    """
    import tokenizers

    file = _find(directory)
    if file.name == "tokenizer.json":
        text = file.read_text(encoding="utf-8")
    else:
        declared = _declared(directory, settings)
        if file.name == "tekken.json":
            document, settings = _tekken(file, settings)
        elif file.name != "tokenizer.model" or tiktoken_files.is_tiktoken(file):
            document, settings = _tiktoken(file, settings, declared)
        else:
            document, settings = _sentencepiece(file, settings, declared)
        text = json.dumps(document)
    try:
        return tokenizers.Tokenizer.from_str(text), settings
    except Exception as error:  # the library raises bare Exception
        found = " ".join(str(error).split())
        raise DataError(f"{file}", found=found, expected="a tokenizer") from None


def present(directory: Path) -> Path | None:
    """The file that holds a directory's tokenizer; None if it has none."""
    return next((file for name in NAMES for file in sorted(directory.glob(name))), None)


def _find(directory: Path) -> Path:
    file = present(directory)
    if file is not None:
        return file
    there = directory.is_dir()
    others = sorted(p.name for p in directory.glob("*token*")) if there else []
    found = (", ".join(others) or "no tokenizer file") if there else "no such directory"
    raise DataError(
        f"tokenizer {directory}",
        found=found,
        expected="a directory with " + ", ".join(NAMES[:-1]) + f" or {NAMES[-1]}",
        fix="save the model's fast tokenizer there",
    )


def _declared(directory: Path, settings: Settings) -> dict[int, dict[str, Any]]:
    """Added tokens that a directory lists beside the tokenizer's file, by id."""
    declared = {}
    file = directory / "added_tokens.json"
    if file.is_file():
        try:
            listed = json.loads(file.read_text(encoding="utf-8"))
            declared = {int(n): added_token(int(n), token, True) for token, n in listed.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{file}", found=error, expected="ids by token") from None
    for number, entry in (settings.get("added_tokens_decoder") or {}).items():
        flags = {
            name: bool(entry[name])
            for name in ("lstrip", "rstrip", "single_word", "normalized")
            if name in entry
        }
        special = bool(entry.get("special", False))
        declared[int(number)] = added_token(int(number), entry["content"], special, **flags)
    return declared


def _class_of(settings: Settings) -> str:
    return str(settings.get("tokenizer_class") or "").removesuffix("Fast")


def _sentencepiece(
    file: Path, settings: Settings, declared: dict[int, dict[str, Any]]
) -> tuple[dict[str, Any], Settings]:
    kind = _class_of(settings)
    if kind.removesuffix("Tokenizer") in _OTHER_IDS:
        raise DataError(
            f"tokenizer {file}",
            found=f"tokenizer_class {kind}, which has other ids than this file",
            expected="tokenizer.json",
            fix="save the model's fast tokenizer there",
        )
    model = sentencepiece_model.read_sentencepiece(file)
    names = dict(enumerate(model.pieces)) | {n: entry["content"] for n, entry in declared.items()}
    roles = {
        "bos_token": model.bos_id,
        "eos_token": model.eos_id,
        "unk_token": model.unknown_id,
        "pad_token": model.padding_id,
    }
    own = {role: names[number] for role, number in roles.items() if number is not None}
    settings = own | settings
    prefix: Prefix = "always" if settings.get("legacy") is True else "first"
    if not model.add_dummy_prefix or settings.get("add_prefix_space") is False:
        prefix = "never"
    ids = {name: number for number, name in names.items()}
    seq2seq = kind == "T5Tokenizer"
    document = sentencepiece_document(
        model,
        prefix,
        added=list(declared.values()),
        before=_around(settings, "bos", ids, not seq2seq),
        after=_around(settings, "eos", ids, seq2seq),
    )
    return document, settings


def _tiktoken(
    file: Path, settings: Settings, declared: dict[int, dict[str, Any]]
) -> tuple[dict[str, Any], Settings]:
    kind = _class_of(settings)
    if kind not in _RANKS:
        raise DataError(
            f"tokenizer {file}",
            found=f"tokenizer_class {kind}, whose pattern of words is not known",
            expected="one of " + ", ".join(name for name in _RANKS if name),
            fix="save the model's tokenizer.json there",
        )
    pattern, starts, special = _RANKS[kind]
    ranked = tiktoken_files.read_tiktoken(file)
    for number, token in enumerate(special, len(ranked.tokens)):
        declared.setdefault(number, added_token(number, token, True))
    if not declared:
        raise DataError(
            f"tokenizer {file}",
            found="no special tokens",
            expected="added_tokens_decoder in tokenizer_config.json, as the file holds none",
            fix="copy the model's tokenizer_config.json there",
        )
    if special:
        settings = {"eos_token": special[0], "pad_token": special[0]} | settings
    ids = {entry["content"]: number for number, entry in declared.items()}
    document = tiktoken_files.ranked_document(
        ranked,
        pattern,
        added=list(declared.values()),
        normalizer={"type": "NFC"} if pattern == QWEN_2 else None,
        before=_around(settings, "bos", ids, starts),
        after=_around(settings, "eos", ids, False),
    )
    return document, settings


def _tekken(file: Path, settings: Settings) -> tuple[dict[str, Any], Settings]:
    ranked = tiktoken_files.read_tekken(file)
    ids = {token: number for number, token in enumerate(ranked.special)}
    usual = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings = {role: token for role, token in usual.items() if token in ids} | settings
    document = tiktoken_files.ranked_document(
        ranked,
        ranked.pattern,
        added=[added_token(number, token, True) for token, number in ids.items()],
        before=_around(settings, "bos", ids, True),
        after=_around(settings, "eos", ids, False),
    )
    return document, settings


def _around(settings: Settings, role: str, ids: Mapping[str, int], default: bool) -> int | None:
    """Id of the token that is put before or behind texts, if the settings or the format say so."""
    asked = settings.get(f"add_{role}_token")
    token = settings.get(f"{role}_token")
    text = token.get("content") if isinstance(token, Mapping) else token
    return ids.get(text) if text and (default if asked is None else asked) else None
