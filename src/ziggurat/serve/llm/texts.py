"""Fields that hold texts or token ids, one or several: prompts and what is to be embedded."""

import array
from collections.abc import Sequence

from ziggurat.core.errors import DataError
from ziggurat.core.json_types import Json
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.serve.errors import ContextTooLong, RequestError, short
from ziggurat.serve.llm import special_text

_PIECE = 2**18
"""Characters of a long text that are tokenised to count them: 50 MiB of tokens at most."""
_CUT = 512
"""Tokens by which a cut may change the count at most: WordPiece takes a word of 200 letters as one
unknown token, and its halves as a token for each letter."""
Texts = list[str] | list[Sequence[int]]


def listed(value: Json, field: str) -> Texts:
    """Texts or lists of ids of a field, as a list.

    >>> listed("Hi", "prompt"), listed([5, 6], "prompt")
    (['Hi'], [[5, 6]])

    Raises:
        RequestError: it is neither.
    """
    if isinstance(value, str):
        return [value]
    if _all(value, int):
        return [value]
    if value and (_all(value, str) or all(_all(entry, int) for entry in value)):
        return value
    raise RequestError(
        field,
        found=short(value),
        expected="a text, a list of texts, token ids or a list of token ids",
        param=field,
    )


def encode(
    tokenizer: HuggingFaceTokenizer,
    texts: Texts,
    field: str,
    *,
    special: bool = True,
    special_tokens: bool = True,
    max_length: int | None = None,
) -> list[Sequence[int]]:
    """Token ids of texts; lists of ids stay as they are.

    Args:
        tokenizer: the model's.
        texts: see :func:`listed`.
        field: their field, for errors.
        special: add the tokens that the model expects around a text.
        special_tokens: let the text of a special token become that token.
        max_length: most tokens; a text that must have more is refused before it is encoded.

    Raises:
        RequestError: a text is no Unicode.
        ContextTooLong: a text cannot be of ``max_length`` tokens or fewer.
    """

    def ids(text: str) -> Sequence[int]:
        check_length(tokenizer, text, max_length, field)
        if special_tokens or special_text.mark(text, tokenizer, "-") == text:
            return tokenizer.encode(text, add_special_tokens=special)
        return special_text.text_tokenizer(tokenizer).encode(text, add_special_tokens=special)

    try:
        return [ids(text) if isinstance(text, str) else text for text in texts]
    except DataError as error:
        raise RequestError(field, found=error.found, expected=error.expected, param=field) from None


def check_length(
    tokenizer: HuggingFaceTokenizer, text: str, max_length: int | None, field: str
) -> None:
    """Refuse a text that is too long whatever its tokens are, before seconds of tokenising.

    A token stands for no more bytes of a text than the longest one has. A long text is tokenised in
    pieces as well, until there are more tokens than fit: a cut changes the count by a few.

    Raises:
        ContextTooLong: it has more than ``max_length`` tokens.
    """
    if max_length is None or len(text) <= max_length:
        return
    size, longest = len(text.encode("utf-8", "replace")), tokenizer.longest_token
    if size > max_length * longest:
        raise ContextTooLong(
            field,
            found=f"{size} bytes, at least {-(-size // longest)} tokens",
            expected=f"at most {max_length} tokens, output included",
            fix="shorten it",
            param=field,
        )
    found = 0
    for at in range(0, len(text) if len(text) > _PIECE else 0, _PIECE):
        found += max(0, int(_count(tokenizer, text[at : at + _PIECE]) * 0.98) - _CUT)
        if found > max_length:
            raise ContextTooLong(
                field,
                found=f"at least {found} tokens",
                expected=f"at most {max_length} tokens, output included",
                fix="shorten it",
                param=field,
            )


def _count(tokenizer: HuggingFaceTokenizer, text: str) -> int:
    try:
        return len(tokenizer.backend.encode_batch_fast([text], add_special_tokens=False)[0])
    except (UnicodeEncodeError, TypeError):  # a lone surrogate: refused with all of the text
        return 0


def _all(value: Json, kind: type) -> bool:
    if isinstance(value, array.array):  # of ids, see ziggurat.serve.json_values.read_ids
        return kind is int and bool(value)
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and all(type(entry) is kind for entry in value)
    )
