"""Texts to vectors by an encoder, in programs of a few shapes."""

import collections
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ModelError
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.data.vocabulary import check_ids
from ziggurat.mesh import Layout
from ziggurat.models.conversion.sentence_layout import SentenceConfig
from ziggurat.models.language_model import Params
from ziggurat.models.loading import pretrained_encoder
from ziggurat.models.loading.pretrained_encoder import PretrainedEncoder
from ziggurat.nn.precision import Precision

SHORTEST = 16
"""Tokens of the smallest program; the next ones double."""
Embed = Callable[[Params, Int[Array, "b t"], Int[Array, "b t"]], Float[Array, "b d"]]
"""``params, tokens, mask`` to vectors."""


class TextEmbedder:
    """Encoder that turns each text into a vector.

    Rows are padded to one of a few lengths and batches to a power of four, so that a few programs,
    compiled at first use or by :meth:`warm_up`, serve everything.

    Args:
        encoder: what :func:`ziggurat.models.loading.pretrained_encoder.load` gives.
        max_batch: most texts in one program.
    """

    def __init__(self, encoder: PretrainedEncoder, max_batch: int = 32):
        self.encoder, self.max_batch = encoder, max_batch
        doubled = [SHORTEST * 2**i for i in range(32) if SHORTEST * 2**i < self.max_length]
        self.lengths = (*doubled, self.max_length)
        """Lengths in tokens that programs exist for."""
        self.batches = (*(4**i for i in range(16) if 4**i < max_batch), max_batch)
        """Numbers of texts that they exist for."""
        self._run = jax.jit(embedding_function(encoder))

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        precision: Precision | None = None,
        layout: Layout | None = None,
        max_batch: int = 32,
    ) -> "TextEmbedder":
        """From a directory, see :func:`ziggurat.models.loading.pretrained_encoder.load`."""
        return cls(pretrained_encoder.load(path, precision=precision, layout=layout), max_batch)

    @property
    def max_length(self) -> int:
        """Longest text in tokens, special ones included."""
        return self.encoder.sentence.max_length

    @property
    def vocab_size(self) -> int:
        """Number of ids that the encoder accepts; its tokenizer may have more."""
        return self.encoder.model.config.vocab_size

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.encoder.model.encoder.d_model

    @property
    def tokenizer(self) -> HuggingFaceTokenizer:
        """Tokenizer of the texts."""
        return self.encoder.tokenizer

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids with special tokens; a text that is too long loses its end, as in
        sentence-transformers, but not the special tokens after it."""
        longest = self.max_length
        encoded = self.tokenizer.encode_batch(texts, add_special_tokens=True)
        for text, ids in enumerate(encoded):
            if len(ids) > longest:
                after = self._special_after
                encoded[text] = ids[: longest - after] + ids[len(ids) - after :]
        return encoded

    @property
    def _special_after(self) -> int:
        """How many special tokens stand after a text."""
        around = self.tokenizer.encode("a", add_special_tokens=True)
        return len(around) - 1 - around.index(self.tokenizer.encode("a")[0])

    def embed(self, ids: Sequence[Sequence[int]]) -> Float[np.ndarray, "n d"]:
        """A vector for each text, float32.

        Args:
            ids: token ids of each text, special ones included.

        Raises:
            ModelError: a text has no tokens, or more than :attr:`max_length`.
            DataError: it has an id beyond :attr:`vocab_size`.
        """
        groups: dict[int, list[int]] = collections.defaultdict(list)
        for text, row in enumerate(ids):
            if not 1 <= len(row) <= self.max_length:
                raise ModelError(
                    f"text {text}",
                    found=f"{len(row)} tokens",
                    expected=f"1 to {self.max_length}",
                    fix="cut it, or split it into several texts",
                )
            check_ids(row, self.vocab_size, f"text {text}")
            groups[next(n for n in self.lengths if n >= len(row))].append(text)
        out = np.empty((len(ids), self.dimension), np.float32)
        for length, texts in groups.items():
            for start in range(0, len(texts), self.max_batch):
                chosen = texts[start : start + self.max_batch]
                out[chosen] = self._batch([ids[text] for text in chosen], length)
        return out

    def warm_up(self) -> None:
        """Compile every program."""
        for length in self.lengths:
            for size in self.batches:
                self._batch([[0]] * size, length)

    def _batch(self, rows: Sequence[Sequence[int]], length: int) -> Float[np.ndarray, "n d"]:
        size = next(size for size in self.batches if size >= len(rows))
        tokens, mask = np.zeros((2, size, length), np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)], mask[i, : len(row)] = row, 1
        vectors = self._run(self.encoder.params, tokens, mask)
        return np.asarray(vectors)[: len(rows)]


def embedding_function(encoder: PretrainedEncoder) -> Embed:
    """The pure function from tokens to vectors; shapes may be symbolic."""
    model, sentence = encoder.model, encoder.sentence

    def embed(
        params: Params, tokens: Int[Array, "b t"], mask: Int[Array, "b t"]
    ) -> Float[Array, "b d"]:
        return pool(model.hidden(params, tokens, mask), mask, sentence)

    return embed


def pool(
    hidden: Float[Array, "b t d"], mask: Int[Array, "b t"], sentence: SentenceConfig
) -> Float[Array, "b d"]:
    """One vector of each row's states where ``mask`` is 1, in float32."""
    states, seen = hidden.astype(jnp.float32), mask[..., None].astype(jnp.float32)
    count = jnp.maximum(seen.sum(1), 1e-9)
    if sentence.pooling == "cls":
        vectors = states[:, 0]
    elif sentence.pooling == "max":
        vectors = jnp.where(seen > 0, states, -1e9).max(1)
    else:
        root = sentence.pooling == "mean_sqrt_len_tokens"
        vectors = (states * seen).sum(1) / (jnp.sqrt(count) if root else count)
    if sentence.normalize:
        length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
        vectors = vectors / jnp.maximum(length, 1e-12)
    return vectors


def bundle_parts(encoder: PretrainedEncoder) -> tuple[Embed, Any, str]:
    """Function, parameters and signature for ``ziggurat.serve.predict.export``.

    The batch ``b`` and the length ``t`` are symbolic.
    """
    signature = (
        f"tokens:INT32[b,t] mask:INT32[b,t] -> embedding:FP32[b,{encoder.model.encoder.d_model}]"
    )
    return embedding_function(encoder), encoder.params, signature
