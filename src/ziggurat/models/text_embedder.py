"""Texts to vectors by an encoder, in programs of a few shapes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ziggurat.data import HuggingFaceTokenizer
from ziggurat.mesh import Layout
from ziggurat.models.conversion.sentence_layout import SentenceConfig
from ziggurat.models.loading import pretrained_encoder
from ziggurat.models.loading.pretrained_encoder import PretrainedEncoder
from ziggurat.models.row_programs import RowPrograms
from ziggurat.models.traced_model import Params
from ziggurat.nn.pooling import pool
from ziggurat.nn.precision import Precision

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
        function = embedding_function(encoder)
        self._programs = RowPrograms(
            lambda params, tokens, mask, types: function(params, tokens, mask),
            encoder.params,
            max_length=self.max_length,
            width=self.dimension,
            vocab_size=self.vocab_size,
            max_batch=max_batch,
        )
        self.lengths, self.batches = self._programs.lengths, self._programs.batches

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
        return self.encoder.model.vocab_size

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.encoder.model.width

    @property
    def tokenizer(self) -> HuggingFaceTokenizer:
        """Tokenizer of the texts."""
        return self.encoder.tokenizer

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, special tokens included. A text longer than ``max_length`` is cut at
        its end, before the closing special tokens, as in sentence-transformers."""
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
        return self._programs(ids)

    def warm_up(self) -> None:
        """Compile every program."""
        self._programs.warm_up()


def embedding_function(encoder: PretrainedEncoder) -> Embed:
    """The pure function from tokens to vectors; shapes may be symbolic."""
    model, sentence = encoder.model, encoder.sentence

    def embed(
        params: Params, tokens: Int[Array, "b t"], mask: Int[Array, "b t"]
    ) -> Float[Array, "b d"]:
        return pooled(model.hidden(params, tokens, mask), mask, sentence)

    return embed


def pooled(
    hidden: Float[Array, "b t d"], mask: Int[Array, "b t"], sentence: SentenceConfig
) -> Float[Array, "b d"]:
    """One vector of each row's states where ``mask`` is 1, in float32."""
    vectors = pool(hidden, mask, sentence.states)
    if sentence.normalize:
        length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
        vectors = vectors / jnp.maximum(length, 1e-12)
    return vectors


def bundle_parts(encoder: PretrainedEncoder) -> tuple[Embed, Any, str]:
    """Function, parameters and signature for ``ziggurat.serve.predict.export``.

    The batch ``b`` and the length ``t`` are symbolic.
    """
    signature = f"tokens:INT32[b,t] mask:INT32[b,t] -> embedding:FP32[b,{encoder.model.width}]"
    return embedding_function(encoder), encoder.params, signature
