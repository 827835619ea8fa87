"""Fields that hold texts or token ids, one or several: prompts and what is to be embedded."""

from collections.abc import Sequence
from typing import Any

from ziggurat.core.errors import DataError
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.serve.bodies import short
from ziggurat.serve.errors import RequestError

Texts = list[str] | list[list[int]]


def listed(value: Any, field: str) -> Texts:
    """A field's texts or lists of ids.

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
    tokenizer: HuggingFaceTokenizer, texts: Texts, field: str, *, special: bool = True
) -> list[list[int]]:
    """Token ids of texts; what is ids already stays.

    Args:
        tokenizer: the model's.
        texts: see :func:`listed`.
        field: their field, for errors.
        special: add the tokens that the model expects around a text.

    Raises:
        RequestError: a text is no Unicode.
    """
    try:
        return [
            tokenizer.encode(text, add_special_tokens=special) if isinstance(text, str) else text
            for text in texts
        ]
    except DataError as error:
        raise RequestError(field, found=error.found, expected=error.expected, param=field) from None


def _all(value: Any, kind: type) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and all(type(entry) is kind for entry in value)
    )
