"""Token ids and the vocabulary of the model that reads them."""

from collections.abc import Sequence

import numpy as np

from ziggurat.core.errors import DataError


def check_ids(ids: Sequence[int] | np.ndarray, vocab_size: int, what: str) -> None:
    """Refuse ids that a model has no embedding for.

    A tokenizer may have more tokens than its model has rows, and a gather in JAX answers an index
    beyond the end with another row or NaN.

    Args:
        ids: tokens of any shape.
        vocab_size: rows of the embedding.
        what: names the tokens, for people.

    Raises:
        DataError: an id is negative, or beyond the vocabulary.

    >>> check_ids([3, 9], 10, "prompt")
    >>> check_ids([3, 10], 10, "prompt")
    Traceback (most recent call last):
        ...
    ziggurat.core.errors.DataError: prompt: found token 10; expected ids of 0 to 9, the model's \
vocabulary; leave the special token out of the text
    """
    array = np.asarray(ids)
    bad = array[(array < 0) | (array >= vocab_size)]
    if bad.size:
        raise DataError(
            what,
            found=f"token {int(bad[0])}",
            expected=f"ids of 0 to {vocab_size - 1}, the model's vocabulary",
            fix="leave the special token out of the text",
        )
