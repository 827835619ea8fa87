"""Log-probabilities of given answers under a model, the ground of every preference objective."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ziggurat.kernels.cross_entropy import linear_log_probs
from ziggurat.kernels.linear import dense
from ziggurat.models import LanguageModel, Params
from ziggurat.nn.attention_context import Packed

CHUNK_TOKENS = 1024
"""Tokens whose logits exist at once."""
ARRAYS = ("tokens", "targets", "segment_ids", "positions", "loss_mask")


def token_log_probs(
    model: LanguageModel,
    params: Params,
    batch: Mapping[str, jax.Array],
    *,
    chunk_tokens: int = CHUNK_TOKENS,
    token_shards: int = 1,
) -> Float[Array, "b t"]:
    """Log-probability of each target that ``loss_mask`` counts, nats; 0 elsewhere.

    Args:
        model: the model.
        params: its parameters; adapted and quantised weights may be among them.
        batch: the arrays of a language-model batch, see ``core.protocols.Batch``.
        chunk_tokens: tokens whose logits exist at once.
        token_shards: parts in which the batch is sharded over devices.
    """
    context = Packed(batch["segment_ids"])
    hidden, _ = model.hidden(params, batch["tokens"], batch["positions"], context)
    with jax.named_scope("loss"):
        found = linear_log_probs(
            hidden.reshape(-1, hidden.shape[-1]),
            dense(model.head(params)),
            batch["targets"].reshape(-1),
            logit_softcap=model.decoder.logit_softcap,
            chunk_tokens=chunk_tokens,
            token_shards=token_shards,
        )
    mask = batch["loss_mask"]
    return jnp.where(mask > 0, found.reshape(mask.shape), 0.0)


def stacked(batch: Mapping[str, jax.Array], sides: tuple[str, str]) -> dict[str, jax.Array]:
    """Join two kinds of rows of a batch, so that one forward pass serves both; the two rows of a
    record lie side by side on one device."""
    return {
        name: jnp.stack([batch[side + name] for side in sides], 1).reshape(
            -1, *batch[sides[0] + name].shape[1:]
        )
        for name in ARRAYS
    }


def unstacked(values: Float[Array, " two_b"]) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Split values of the rows of :func:`stacked` into the two kinds again.

    >>> [part.tolist() for part in unstacked(jnp.arange(4.0))]
    [[0.0, 2.0], [1.0, 3.0]]
    """
    pairs = values.reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]
