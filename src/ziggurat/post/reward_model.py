"""Reward models: a decoder with one more output, a score of the whole answer at its last token."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ziggurat.checkpoint import read_arrays
from ziggurat.core import hub
from ziggurat.core.errors import CheckpointError
from ziggurat.core.json_types import JsonMapping
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.data.encode import DocumentEncoder
from ziggurat.data.sources import Document
from ziggurat.data.vocabulary import check_ids
from ziggurat.models import LanguageModel, Params
from ziggurat.models.loading import pretrained, step_files
from ziggurat.nn.attention_context import Packed
from ziggurat.nn.precision import Precision

HEAD = "score"
"""Name of the score's parameters beside the decoder's."""


def head_shape(model: LanguageModel) -> tuple[Params, Params]:
    """Shape and logical axis names of the score head that a reward model has beside its decoder."""
    kernel = jax.ShapeDtypeStruct((model.decoder.hidden_width, 1), model.precision.param_dtype)
    return {HEAD: {"kernel": kernel}}, {HEAD: {"kernel": ("embed", None)}}


def initial_head(model: LanguageModel, key: Key[Array, ""]) -> Params:
    """Draw a score head of small random weights."""
    shape, _ = head_shape(model)
    like = shape[HEAD]["kernel"]
    drawn = model.decoder.init_std * jax.random.normal(key, like.shape, jnp.float32)
    return {HEAD: {"kernel": drawn.astype(like.dtype)}}


def scores(
    model: LanguageModel,
    params: Params,
    head: Float[Array, "d 1"],
    batch: Mapping[str, jax.Array],
) -> Float[Array, " b"]:
    """The score of each row, read at its last token, float32; of a row of padding it means
    nothing.

    Args:
        model: the decoder.
        params: its parameters.
        head: the score's kernel.
        batch: ``tokens``, ``segment_ids`` (0 for padding) and ``positions``.
    """
    context = Packed(batch["segment_ids"])
    hidden, _ = model.hidden(params, batch["tokens"], batch["positions"], context)
    last = jnp.maximum((batch["segment_ids"] > 0).sum(-1) - 1, 0)
    found = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    return (found.astype(jnp.float32) @ head.astype(jnp.float32))[:, 0]


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A trained reward model, ready to score."""

    model: LanguageModel
    params: Params
    head: Any
    tokenizer: HuggingFaceTokenizer

    @classmethod
    def load(cls, path: Path | str, *, precision: Precision | None = None) -> "RewardModel":
        """Read the checkpoint of a run whose objective was ``reward``; adapters are merged.

        Raises:
            CheckpointError: it is no reward model.
            ModelError: nothing of the kind is there.
        """
        path = hub.local(path)
        loaded = pretrained.load(path, precision=precision)
        step = step_files.step_directory(path)
        arrays = {} if step is None else read_arrays(step, "params")
        if not isinstance(arrays, dict) or HEAD not in arrays:
            raise CheckpointError(
                f"reward model {path}",
                found="no score among its parameters",
                expected="the run of an objective of kind reward",
            )
        head = jnp.asarray(arrays[HEAD]["kernel"])
        return cls(loaded.model, loaded.params, head, loaded.tokenizer)

    def __call__(
        self, conversations: Sequence[Sequence[JsonMapping]] | Sequence[str]
    ) -> Float[np.ndarray, " n"]:
        """The score of each text or conversation, encoded as in training.

        Raises:
            DataError: the tokenizer has no chat template for conversations.
        """
        encoder = DocumentEncoder(self.tokenizer)
        documents = [
            Document(one, "", n)
            if isinstance(one, str)
            else Document("", "", n, messages=tuple(one))
            for n, one in enumerate(conversations)
        ]
        rendered = [encoder.render(document) or document for document in documents]
        ids = [found for found, _ in encoder.encode(rendered)]
        for number, found in enumerate(ids):
            check_ids(found, self.model.config.vocab_size, f"text {number}")
        size = -(-max(map(len, ids)) // 64) * 64  # few lengths, so few compilations
        rows = np.zeros((len(ids), size), np.int32)
        segments = np.zeros_like(rows)
        for row, found in enumerate(ids):
            rows[row, : len(found)], segments[row, : len(found)] = found, 1
        positions = np.broadcast_to(np.arange(size, dtype=np.int32), rows.shape)
        batch = {"tokens": rows, "segment_ids": segments, "positions": positions}
        return np.asarray(self._score(self.params, self.head, batch))

    @functools.cached_property
    def _score(self) -> Any:
        model = self.model
        return jax.jit(lambda params, head, batch: scores(model, params, head, batch))
