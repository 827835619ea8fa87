"""Special tokens that only the chat template makes: in what users write, their text is just text.

A user who writes ``<|im_end|>`` must not end a turn. A tokenizer sees the rendered conversation
only, so the user's texts are marked before a template renders them and the marks are taken out
after. Then the template's own special tokens are written in another way, which a twin of the
tokenizer, made for this, reads as these tokens, and which nobody else can write.
"""

import functools
import json
import re
import secrets
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.data import HuggingFaceTokenizer

if TYPE_CHECKING:
    import tokenizers

_STRETCH = 2**14
"""Characters that are searched at once: less than a millisecond."""
_NAMES = frozenset({"role", "type"})
"""Keys whose values a template compares and no user chooses."""
_TWINS: "weakref.WeakKeyDictionary[HuggingFaceTokenizer, TextTokenizer]" = (
    weakref.WeakKeyDictionary()
)


class TextTokenizer:
    """Copy of a tokenizer that reads special tokens' texts as plain text.

    Args:
        tokenizer: the model's; its special tokens get names that hold a secret.
    """

    def __init__(self, tokenizer: HuggingFaceTokenizer):
        import tokenizers

        secret = secrets.token_hex(8)
        self._names = {
            token.content: f"\ufdd0{secret}:{number}\ufdd1"
            for number, token in tokenizer.backend.get_added_tokens_decoder().items()
            if number in tokenizer.special_ids
        }
        self._special = _any_of(self._names)
        self._longest = max(map(len, self._names), default=0)
        state = json.loads(tokenizer.backend.to_str())
        for token in state["added_tokens"]:
            token["content"] = self._name(token["content"])
        _rename_vocabulary(state["model"], self._name)
        self._backend = tokenizers.Tokenizer.from_str(json.dumps(state))
        self._backend.no_truncation()
        self._backend.no_padding()
        # Tokens whose names were not in the vocabulary may have got other ids.
        added = self._backend.get_added_tokens_decoder().items()
        known = {self._name(t.content): n for n, t in _added(tokenizer.backend)}
        self._ids = {n: known.get(t.content, n) for n, t in added}

    def _name(self, text: str) -> str:
        return self._names.get(text, text)

    def encode(self, text: str, mark: str = "", *, add_special_tokens: bool = False) -> list[int]:
        """Ids of a text in which special tokens count only where they are not broken by ``mark``.

        Args:
            text: with marks, which are taken out; without a mark nothing in it is special.
            mark: of :func:`mark`.
            add_special_tokens: add those that the model expects around a text.
        """
        if mark:
            text = _replaced(self._special, lambda found: self._names[found], text, self._longest)
            text = text.replace(mark, "")
        found = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return [self._ids.get(number, number) for number in found[0].ids]


def text_tokenizer(tokenizer: HuggingFaceTokenizer) -> TextTokenizer:
    """The copy for a tokenizer, made when it is first needed."""
    made = _TWINS.get(tokenizer)
    if made is None:
        made = _TWINS[tokenizer] = TextTokenizer(tokenizer)
    return made


def new_mark() -> str:
    """Draw a random text that occurs nowhere else."""
    return f"\ufdd2{secrets.token_hex(8)}\ufdd3"


def mark(value: Any, tokenizer: HuggingFaceTokenizer, sign: str) -> Any:
    """A JSON value with ``sign`` inside whatever of its texts a template could render as a special
    token, be it together with the next text: after the first character of each.

    >>> from ziggurat.data.tokenizers import byte_level
    >>> mark({"content": "a <|endoftext|> b <|end"}, byte_level(), "#")
    {'content': 'a <#|endoftext|> b <#|end'}
    """
    texts = _Texts.of(tuple(sorted(_special_texts(tokenizer))))

    def walk(entry: Any) -> Any:
        if isinstance(entry, str):
            return texts.broken(entry, sign)
        if isinstance(entry, Mapping):
            named = {key: each for key, each in entry.items() if key in _NAMES}
            return {walk(key): walk(each) for key, each in entry.items()} | named
        if isinstance(entry, list | tuple):
            return [walk(each) for each in entry]
        return entry

    return walk(value)


class _Texts:
    """Finds the texts of special tokens, and beginnings of them at the end of a text."""

    def __init__(self, texts: Sequence[str]):
        self._pattern = _any_of(texts)
        self._beginnings = {text[:size] for text in texts for size in range(1, len(text))}
        self._longest = max(map(len, self._beginnings), default=0)

    @classmethod
    @functools.lru_cache(maxsize=16)
    def of(cls, texts: tuple[str, ...]) -> "_Texts":
        return cls(texts)

    def broken(self, text: str, sign: str) -> str:
        """The text with ``sign`` after the first character of each."""
        out = _replaced(
            self._pattern, lambda found: found[:1] + sign + found[1:], text, self._longest + 1
        )
        for size in range(min(self._longest, len(out)), 0, -1):
            if out[-size:] in self._beginnings:
                return out[: len(out) - size + 1] + sign + out[len(out) - size + 1 :]
        return out


def _special_texts(tokenizer: HuggingFaceTokenizer) -> set[str]:
    added = tokenizer.backend.get_added_tokens_decoder()
    return {added[number].content for number in tokenizer.special_ids if number in added}


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of the texts. It goes letter by letter, however many texts there are."""
    tree: JsonObject = {}
    for text in filter(None, texts):
        node = tree
        for letter in text:
            node = node.setdefault(letter, {})
        node[""] = {}
    return re.compile(_branches(tree) if tree else r"(?!)")


def _branches(tree: JsonMapping) -> str:
    ends = "" in tree
    ways = "|".join(re.escape(c) + _branches(rest) for c, rest in tree.items() if c)
    return "" if not ways else f"(?:{ways}){'?' if ends else ''}"


def _replaced(
    pattern: re.Pattern[str], change: Callable[[str], str], text: str, longest: int
) -> str:
    """A text with every match, of at most ``longest`` characters, changed.

    As with ``pattern.sub``, but it looks at little of the text at once: ``re`` holds the
    interpreter's lock while it searches, over a second for a text of megabytes.
    """
    if len(text) <= _STRETCH:
        return pattern.sub(lambda found: change(found[0]), text)
    parts, at, done = [], 0, 0
    while at < len(text):
        found = pattern.search(text, at, at + _STRETCH + longest)
        # A match that begins beyond the stretch may go on beyond what was looked at.
        if found is None or found.start() >= at + _STRETCH:
            at += _STRETCH
            continue
        parts += (text[done : found.start()], change(found[0]))
        at = done = found.end()
    return "".join((*parts, text[done:]))


def _rename_vocabulary(model: JsonObject, name: Any) -> None:
    """Rename special tokens that the model's own vocabulary holds: no text may lead to them."""
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {name(text): number for text, number in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[name(text), *rest] for text, *rest in vocabulary]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = name(model["unk_token"])


def _added(backend: "tokenizers.Tokenizer") -> Any:
    return backend.get_added_tokens_decoder().items()
