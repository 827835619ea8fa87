"""Cost of quantisation on real text: perplexity and top-1 agreement."""

import dataclasses
import math
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import DataError
from ziggurat.core.protocols import Tokenizer
from ziggurat.data.vocabulary import check_ids

Logits = Callable[[Any, Array], Array]
"""Parameters and tokens ``[b, t]`` to logits ``[b, t, v]``."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Loss and agreement of two sets of parameters on one text."""

    tokens: int
    """Tokens predicted."""
    perplexity_before: float
    perplexity_after: float
    agreement: float
    """Top-1 agreement: share of tokens for which the most likely next token is the same."""
    kl_divergence: float
    """Mean of KL(before || after), nats a token."""


def default_text() -> list[Path]:
    """Real text that comes with every Python: the language reference in ``pydoc_data``."""
    return [Path(sysconfig.get_path("stdlib"), "pydoc_data", "topics.py")]


def windows(
    files: Sequence[Path], tokenizer: Tokenizer, tokens: int, length: int, vocab_size: int
) -> Int[np.ndarray, "b t"]:
    """Cut the beginning of some texts into rows of ``length + 1`` ids, each row's last id a target
    only.

    Args:
        files: UTF-8 texts, read in order.
        tokenizer: the model's.
        tokens: how many to predict; rounded up to whole rows, or what there is.
        length: tokens of one row.
        vocab_size: rows of the model's embedding.

    Raises:
        DataError: a file cannot be read, there is less than one row of text, or it has a token
            beyond the vocabulary.
    """
    rows = -(-tokens // length)
    ids: list[int] = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeError) as error:
            raise DataError(f"text {file}", found=error, expected="a UTF-8 text file") from None
        # a token is seldom longer than 16 characters, and only so many are wanted
        ids += tokenizer.encode(text[: 16 * (rows * (length + 1) - len(ids))])
        if len(ids) >= rows * (length + 1):
            break
    rows = min(rows, len(ids) // (length + 1))
    if rows == 0:
        raise DataError("held-out text", found=f"{len(ids)} tokens", expected=f"over {length}")
    wanted = np.asarray(ids[: rows * (length + 1)], np.int32)
    check_ids(wanted, vocab_size, "held-out text")
    return wanted.reshape(rows, length + 1)


def compare(
    logits: Logits,
    before: Any,
    after: Any,
    rows: Int[np.ndarray, "b t"],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Predict every token of some rows with both sets of parameters, a row at a time.

    >>> table = jnp.eye(3)
    >>> compare(lambda p, tokens: p[tokens], table, table, np.array([[0, 1, 1]])).agreement
    1.0
    """
    sums = np.zeros(4)
    step = jax.jit(lambda before, after, row: _sums(logits, before, after, row))
    for number, row in enumerate(rows):
        sums += np.asarray(jax.device_get(step(before, after, row[None])), float)
        progress(number + 1, len(rows))
    count = rows.shape[0] * (rows.shape[1] - 1)
    loss_before, loss_after, agreement, divergence = (sums / count).tolist()
    return Comparison(count, perplexity(loss_before), perplexity(loss_after), agreement, divergence)


def mean_loss(logits: Logits, rows: Int[np.ndarray, "b t"]) -> Callable[[Any], float]:
    """Mean next-token loss over some rows (nats), a row at a time, as a function of the parameters.

    Parameters of equal structure share a compiled program.

    >>> table = jnp.zeros((4, 4))
    >>> loss = mean_loss(lambda p, tokens: p[tokens], np.array([[0, 1, 2]]))
    >>> round(loss(table), 4)
    1.3863
    """

    @jax.jit
    def total(params: Any, row: Array) -> Array:
        scores = jax.nn.log_softmax(logits(params, row[:, :-1]))
        return -jnp.take_along_axis(scores, row[:, 1:, None], axis=-1).sum()

    count = rows.shape[0] * (rows.shape[1] - 1)
    return lambda params: sum(float(total(params, row[None])) for row in rows) / count


def _sums(logits: Logits, before: Any, after: Any, row: Int[Array, "b t"]) -> Float[Array, "n"]:
    p, q = (jax.nn.log_softmax(logits(params, row[:, :-1])) for params in (before, after))
    targets = row[:, 1:, None]
    losses = [-jnp.take_along_axis(log, targets, axis=-1).sum() for log in (p, q)]
    agree = (p.argmax(-1) == q.argmax(-1)).sum().astype(jnp.float32)
    return jnp.stack([*losses, agree, jnp.sum(jnp.exp(p) * (p - q))])


def perplexity(loss: float) -> float:
    """Perplexity of a mean loss in nats."""
    return math.exp(loss) if loss < 700 else math.inf
