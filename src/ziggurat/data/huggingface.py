"""A tokenizer in Hugging Face's directory layout, encoding and decoding as transformers does.

The work is done by the ``tokenizers`` library; what is added here is what transformers keeps around
it: special tokens by role, end ids, chat templates, and the files that hold them.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ziggurat.core import atomic
from ziggurat.core.errors import DataError
from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.data import chat, tokenizer_files

if TYPE_CHECKING:
    import tokenizers

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Special tokens by role, as in ``special_tokens_map.json``."""


class HuggingFaceTokenizer:
    """A ``tokenizers.Tokenizer`` with its special tokens, end ids and chat templates.

    Implements :class:`ziggurat.core.protocols.Tokenizer`.

    Args:
        backend: the fast tokenizer; taken over, its truncation and padding are switched off.
        settings: content of ``tokenizer_config.json``: special tokens by role,
            ``added_tokens_decoder``, ``extra_special_tokens``, ``split_special_tokens``. As in
            transformers 5 ``add_bos_token`` and ``add_eos_token`` count for nothing: what is put
            around a text is the backend's post-processor.
        end_ids: further ids that end a generation, after the eos token's.
        chat_templates: jinja source by name; ``default`` is the usual one.
        generation_config: content of ``generation_config.json``, the settings with which the
            model's publisher generates.
    """

    def __init__(
        self,
        backend: "tokenizers.Tokenizer",
        settings: JsonMapping | None = None,
        *,
        end_ids: Sequence[int] = (),
        chat_templates: Mapping[str, str] | None = None,
        generation_config: JsonMapping | None = None,
    ):
        self._backend = backend
        self.generation_config = dict(generation_config or {})
        self.settings = dict(settings or {})
        self.chat_templates = dict(chat_templates or {})
        self.special_tokens = _special_tokens(self.settings)
        backend.no_truncation()
        backend.no_padding()
        _add_missing(backend, self.settings, self.special_tokens)
        backend.encode_special_tokens = bool(self.settings.get("split_special_tokens", False))
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        eos = self._id("eos_token")
        listed = _listed(self.generation_config.get("eos_token_id"))
        ends: list[int] = [*([] if eos is None else [eos]), *listed, *end_ids]
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(ends))

    @property
    def vocab_size(self) -> int:
        """One more than the greatest id, added tokens included."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def bos_id(self) -> int | None:
        """Id of the token that starts a document, if there is one."""
        return self._id("bos_token")

    @property
    def pad_id(self) -> int | None:
        """Id of the token that fills rows, if there is one."""
        return self._id("pad_token")

    @property
    def chat_template(self) -> str | None:
        """The default chat template, jinja source."""
        return self.chat_templates.get("default")

    @property
    def backend(self) -> "tokenizers.Tokenizer":
        """The wrapped tokenizer."""
        return self._backend

    @functools.cached_property
    def digest(self) -> str:
        """Digest of all that decides how text is encoded."""
        named = json.dumps(
            [self.special_tokens, self._backend.encode_special_tokens], sort_keys=True
        )
        whole = (self._backend.to_str() + named).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(whole, digest_size=16).hexdigest()

    @functools.cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token as it is written in the vocabulary, which are no fewer than
        those of the text it stands for."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        return max((len(text.encode("utf-8", "replace")) for text in vocabulary), default=1)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Ids of ``text``; with ``add_special_tokens``, what transformers adds around it too."""
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = False
    ) -> list[list[int]]:
        """Ids of many texts, on all cores."""
        try:
            encodings = self._backend.encode_batch_fast(
                list(texts), add_special_tokens=add_special_tokens
            )
        except (UnicodeEncodeError, TypeError):
            bad = next((i for i, text in enumerate(texts) if not _is_unicode(text)), 0)
            found = f"a lone surrogate in text {bad}"
            raise DataError("text to encode", found=found, expected="valid Unicode") from None
        return [encoding.ids for encoding in encodings]

    def encode_pair(
        self, first: str, second: str, max_length: int | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids of two texts in one row with special tokens, and which text each is of.

        Args:
            first: text of type 0.
            second: text of type 1, where the tokenizer tells them apart.
            max_length: tokens of the row; the longer text is cut until both fit, as transformers'
                ``longest_first`` does.

        Raises:
            DataError: a text is no Unicode.
        """
        try:
            a, b = (self._backend.encode(t, add_special_tokens=False) for t in (first, second))
        except (UnicodeEncodeError, TypeError):
            found = "a lone surrogate in one of them"
            raise DataError("pair of texts", found=found, expected="valid Unicode") from None
        if max_length is not None:
            room = max(max_length - self._backend.num_special_tokens_to_add(True), 0)
            if len(a) + len(b) > room:
                for encoding, kept in zip((a, b), _shares(len(a), len(b), room)):
                    encoding.truncate(kept)
        joined = self._backend.post_process(a, b)
        return joined.ids, joined.type_ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ``ids``; bytes that are no UTF-8 come out as U+FFFD."""
        text = self._backend.decode(
            [int(number) for number in ids], skip_special_tokens=skip_special_tokens
        )
        return _clean(text) if self.cleans_spaces else text

    @property
    def cleans_spaces(self) -> bool:
        """Whether decoding removes spaces before punctuation, as older WordPiece models ask for.

        As in transformers 5 a BPE tokenizer never does, whatever its settings say.
        """
        asked = bool(self.settings.get("clean_up_tokenization_spaces", False))
        return asked and type(self._backend.model).__name__ != "BPE"

    @functools.cached_property
    def decodes_bytes(self) -> bool:
        """Whether ids are strings of bytes that only need to be joined (byte-level BPE)."""
        decoder = self._backend.decoder
        if decoder is None or self.cleans_spaces:
            return False
        state = json.loads(decoder.__getstate__())
        return [part.get("type") for part in state.get("decoders", [state])] == ["ByteLevel"]

    def apply_chat_template(
        self,
        messages: Sequence[Json],
        tools: Sequence[JsonMapping] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """Render messages with this tokenizer's template and special tokens.

        Raises:
            DataError: there is no template, or it fails.
        """
        name = "tool_use" if tools is not None and "tool_use" in self.chat_templates else "default"
        if name not in self.chat_templates:
            raise DataError(
                "chat template",
                found=f"templates {', '.join(self.chat_templates) or 'none'}",
                expected="a default template",
                fix="use an instruction-tuned tokenizer or add chat_template.jinja",
            )
        variables = {**self.special_tokens, **kwargs}
        return chat.render(
            self.chat_templates[name], messages, tools, add_generation_prompt, **variables
        )

    def save(self, directory: Path) -> None:
        """Write the files transformers reads; files of other names are left as they are."""
        directory.mkdir(parents=True, exist_ok=True)
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self.settings}
        for key in ("chat_template", "add_bos_token", "add_eos_token"):
            settings.pop(key, None)
        atomic.write_file(directory / "tokenizer.json", self._backend.to_str(pretty=True))
        atomic.write_file(directory / "tokenizer_config.json", _as_json(settings))
        atomic.write_file(directory / "special_tokens_map.json", _as_json(self.special_tokens))
        for name, template in self.chat_templates.items():
            if name == "default":
                atomic.write_file(directory / "chat_template.jinja", template)
            else:
                (directory / _TEMPLATES).mkdir(exist_ok=True)
                atomic.write_file(directory / _TEMPLATES / f"{name}.jinja", template)
        generation = dict(self.generation_config)
        told = {*_listed(generation.get("eos_token_id")), self._id("eos_token")}
        if not told.issuperset(self.eos_ids):
            generation["eos_token_id"] = list(self.eos_ids)
        if generation:
            atomic.write_file(directory / "generation_config.json", _as_json(generation))

    @classmethod
    def load(cls, directory: Path) -> "HuggingFaceTokenizer":
        """Read a tokenizer directory: ``tokenizer.json``, or another file of
        :mod:`ziggurat.data.tokenizer_files`.

        Raises:
            DataError: there is no such file, it is damaged, or another file is no JSON.
            CheckpointError: a file other than ``tokenizer.json`` is damaged or of another kind.
        """
        settings = _read_json(directory / "tokenizer_config.json")
        if "added_tokens_decoder" not in settings:
            settings |= _read_json(directory / "special_tokens_map.json")
        backend, settings = tokenizer_files.read(directory, settings)
        generation = _read_json(directory / "generation_config.json")
        try:
            templates = _read_templates(directory, settings.pop("chat_template", None))
            return cls(backend, settings, chat_templates=templates, generation_config=generation)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            found = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise DataError(
                f"tokenizer {directory}",
                found=found,
                expected="settings as transformers saves them",
            ) from None

    def _id(self, role: str) -> int | None:
        text = self.special_tokens.get(role)
        return None if text is None else self._backend.token_to_id(text)


_TEMPLATES = "additional_chat_templates"


def _special_tokens(settings: JsonMapping) -> dict[str, str]:
    """Special tokens by role: the usual ones, then those that only this model has."""
    extra = settings.get("extra_special_tokens")
    own = {k: v for k, v in settings.items() if k.endswith("_token") and k not in NAMED}
    entries = {role: settings.get(role) for role in NAMED} | own
    entries |= extra if isinstance(extra, Mapping) else {}
    contents = {role: _content(entry) for role, entry in entries.items()}
    return {role: text for role, text in contents.items() if text is not None}


def _add_missing(
    backend: "tokenizers.Tokenizer", settings: JsonMapping, named: Mapping[str, str]
) -> None:
    """Add the tokens that only the settings name, in the order transformers does."""
    import tokenizers

    missing: dict[str, tokenizers.AddedToken] = {}
    declared = settings.get("added_tokens_decoder") or {}
    for _, entry in sorted(declared.items(), key=lambda item: int(item[0])):
        flags = {
            k: entry[k] for k in ("lstrip", "rstrip", "single_word", "normalized") if k in entry
        }
        special = bool(entry.get("special", False)) or entry["content"] in named.values()
        missing[entry["content"]] = tokenizers.AddedToken(
            entry["content"], special=special, **flags
        )
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    listed = [] if isinstance(extra, Mapping) else [_content(entry) for entry in extra]
    for text in [*named.values(), *listed]:
        if text is not None and text not in missing:
            missing[text] = tokenizers.AddedToken(text, special=True)
    for token in backend.get_added_tokens_decoder().values():
        missing.pop(token.content, None)
    backend.add_tokens(list(missing.values()))


def _content(entry: Json) -> str | None:
    """A special token is stored as its text or as an object with flags."""
    content = entry.get("content") if isinstance(entry, Mapping) else entry
    return content if isinstance(content, str) else None


def _listed(ids: Json) -> list[int]:
    """``eos_token_id``, which is one id, several or none."""
    return list(ids) if isinstance(ids, list) else [] if ids is None else [ids]


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _clean(text: str) -> str:
    for mark in (".", "?", "!", ","):
        text = text.replace(" " + mark, mark)
    text = text.replace(" ' ", "'")
    for ending in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(" " + ending, ending)
    return text


def _as_json(value: Json) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _read_json(file: Path) -> JsonObject:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{file}", found=error, expected="a JSON object") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}", found=type(content).__name__, expected="a JSON object")
    return content


def _read_templates(directory: Path, setting: Json) -> dict[str, str]:
    """Chat templates from the settings, overridden by the files beside them."""
    files = {"default": directory / "chat_template.jinja"} | {
        file.stem: file for file in sorted((directory / _TEMPLATES).glob("*.jinja"))
    }
    read = {k: file.read_text(encoding="utf-8-sig") for k, file in files.items() if file.is_file()}
    if read or setting is None:
        return read
    if isinstance(setting, str):
        return {"default": setting}
    return {entry["name"]: entry["template"] for entry in setting}


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    """Tokens that two texts keep when the longer one is cut first.

    >>> _shares(3, 9, 8), _shares(9, 9, 7), _shares(9, 3, 8)
    ((3, 5), (3, 4), (5, 3))
    """
    shorter = min(first, second)
    longer = shorter if shorter > room else max(shorter, room - shorter)
    if shorter + longer > room:
        shorter, longer = room // 2, room // 2 + room % 2
    return (shorter, longer) if first <= second else (longer, shorter)
