"""Scores of pairs of texts, by a cross-encoder or by the vectors of each."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ModelError
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.mesh import Layout
from ziggurat.models.encoder_model import EncoderModel
from ziggurat.models.loading import pretrained_encoder
from ziggurat.models.loading.pretrained_encoder import PretrainedEncoder
from ziggurat.models.row_programs import RowPrograms
from ziggurat.models.text_embedder import TextEmbedder
from ziggurat.models.traced_model import Params
from ziggurat.nn.precision import Precision

Pair = tuple[str, str]


class CrossEncoder:
    """A classifier with one label that reads both texts of a pair together.

    Args:
        encoder: what :func:`ziggurat.models.loading.pretrained_encoder.load` gives.
        max_batch: most pairs in one program.

    Raises:
        ModelError: the encoder has no head over whole texts, or one of several labels.
    """

    def __init__(self, encoder: PretrainedEncoder, max_batch: int = 32):
        model, labels = encoder.model, encoder.model.labels
        if labels != 1 or not isinstance(model, EncoderModel):
            raise ModelError(
                f"cross-encoder {encoder.source}",
                found=f"{labels} labels" if labels else "an encoder without a head over texts",
                expected="a classifier of texts with one label",
            )
        self.encoder, typed = encoder, model.token_types > 1
        sigmoid = encoder.sentence.score == "sigmoid"

        def scores(
            params: Params,
            tokens: Int[Array, "b t"],
            mask: Int[Array, "b t"],
            types: Int[Array, "b t"],
        ) -> Float[Array, "b e"]:
            logits = model.logits(params, tokens, mask, token_types=types if typed else None)
            return jax.nn.sigmoid(logits) if sigmoid else logits

        self._programs = RowPrograms(
            scores,
            encoder.params,
            max_length=self.max_length,
            width=1,
            vocab_size=self.vocab_size,
            max_batch=max_batch,
        )

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        precision: Precision | None = None,
        layout: Layout | None = None,
        max_batch: int = 32,
    ) -> "CrossEncoder":
        """From a directory, see :func:`ziggurat.models.loading.pretrained_encoder.load`."""
        return cls(pretrained_encoder.load(path, precision=precision, layout=layout), max_batch)

    @property
    def tokenizer(self) -> HuggingFaceTokenizer:
        """Tokenizer of the texts."""
        return self.encoder.tokenizer

    @property
    def max_length(self) -> int:
        """Longest pair in tokens, special ones included."""
        return self.encoder.sentence.max_length

    @property
    def vocab_size(self) -> int:
        """Ids that the encoder takes are below this."""
        return self.encoder.model.vocab_size

    def score(self, pairs: Sequence[Pair]) -> tuple[Float[np.ndarray, "n"], int]:
        """Scores of pairs, and how many tokens were read.

        A pair that is too long loses the end of its longer text, as in sentence-transformers.

        Raises:
            DataError: a text is no Unicode, or has an id beyond :attr:`vocab_size`.
        """
        rows = [self.tokenizer.encode_pair(a, b, self.max_length) for a, b in pairs]
        ids, types = [ids for ids, _ in rows], [types for _, types in rows]
        return self._programs(ids, types)[:, 0], sum(map(len, ids))

    def warm_up(self) -> None:
        """Compile every program."""
        self._programs.warm_up()


class VectorScorer:
    """Cosine of the vectors that an embedder gives each text of a pair.

    Args:
        embedder: gives the vectors.
    """

    def __init__(self, embedder: TextEmbedder):
        self.embedder = embedder

    @property
    def tokenizer(self) -> HuggingFaceTokenizer:
        """Tokenizer of the texts."""
        return self.embedder.tokenizer

    @property
    def max_length(self) -> int:
        """Longest text in tokens."""
        return self.embedder.max_length

    @property
    def vocab_size(self) -> int:
        """Ids that the encoder takes are below this."""
        return self.embedder.vocab_size

    def score(self, pairs: Sequence[Pair]) -> tuple[Float[np.ndarray, "n"], int]:
        """Cosines of pairs, and how many tokens were read; a text that stands in several pairs is
        read once."""
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        ids = self.embedder.encode(texts)
        vectors = self.embedder.embed(ids)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        of = dict(zip(texts, vectors))
        cosines = [float(of[a] @ of[b]) for a, b in pairs]
        return np.array(cosines, np.float32), sum(map(len, ids))

    def warm_up(self) -> None:
        """Compile every program."""
        self.embedder.warm_up()
