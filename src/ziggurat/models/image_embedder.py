"""Pictures, and texts beside them, to vectors or logits of labels."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ModelError
from ziggurat.mesh import Layout
from ziggurat.models.encoder_model import EncoderModel
from ziggurat.models.loading import pretrained_vision
from ziggurat.models.loading.pretrained_vision import PretrainedVision
from ziggurat.models.traced_model import Params
from ziggurat.models.two_tower_model import TwoTowerModel
from ziggurat.nn.precision import Precision

if TYPE_CHECKING:
    from PIL import Image

EmbedImages = Callable[[Params, Float[Array, "b c h w"]], Float[Array, "b e"]]
"""``params, pixels`` to vectors, or to logits of labels."""


class ImageEmbedder:
    """An encoder that gives each picture a vector, or logits where it has a classifier; with a
    tower for texts, each text too.

    Args:
        vision: what :func:`ziggurat.models.loading.pretrained_vision.load` gives.
        max_batch: most pictures or texts in one program.
    """

    def __init__(self, vision: PretrainedVision, max_batch: int = 32):
        self.vision, self.max_batch = vision, max_batch
        self._images = jax.jit(image_function(vision))

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        precision: Precision | None = None,
        layout: Layout | None = None,
        max_batch: int = 32,
    ) -> "ImageEmbedder":
        """From a directory, see :func:`ziggurat.models.loading.pretrained_vision.load`."""
        return cls(pretrained_vision.load(path, precision=precision, layout=layout), max_batch)

    def embed_images(
        self, pictures: Sequence["bytes | Path | Image.Image"]
    ) -> Float[np.ndarray, "n e"]:
        """A vector for each picture, or its logits.

        Raises:
            DataError: a picture cannot be decoded or is too large.
        """
        parts = [
            np.asarray(self._images(self.vision.params, jnp.asarray(self.vision.processor(batch))))
            for batch in self._batches(pictures)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, output_width(self.vision)), "f4")

    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n e"]:
        """A vector of length one for each text.

        Texts that are too long lose their end; a last special token stays.

        Raises:
            ModelError: there is no tower for texts.
            DataError: a text is no Unicode.
        """
        run, parts = self._texts, []
        for batch in self._batches(texts):
            tokens = jnp.asarray(self.tokens(batch))
            parts.append(np.asarray(run(self.vision.params, tokens)))
        return np.concatenate(parts) if parts else np.zeros((0, output_width(self.vision)), "f4")

    def tokens(self, texts: Sequence[str]) -> Int[np.ndarray, "n t"]:
        """Rows of token ids, each padded to the longest text that the tower takes; the towers read
        padding behind the end (CLIP: never looks there; SigLIP: trained so)."""
        model, tokenizer = self._two_towers, self.vision.tokenizer
        assert tokenizer is not None
        length = model.text.max_length
        assert length is not None
        out = np.full((len(texts), length), tokenizer.pad_id or 0, np.int32)
        for row, ids in zip(out, tokenizer.encode_batch(texts, add_special_tokens=True)):
            if len(ids) > length:
                ids = [*ids[: length - 1], ids[-1]]
            row[: len(ids)] = ids
        return out

    @functools.cached_property
    def _texts(self) -> Callable[[Params, Int[Array, "b t"]], Float[Array, "b e"]]:
        return jax.jit(self._two_towers.text_vectors)

    @property
    def _two_towers(self) -> TwoTowerModel:
        model = self.vision.model
        if isinstance(model, TwoTowerModel):
            return model
        raise ModelError(
            f"texts for {self.vision.source}",
            found=f"an encoder of images ({model.config.kind})",
            expected="a model with a tower for texts, such as CLIP",
        )

    def _batches(self, items: Sequence[Any]) -> list[Sequence[Any]]:
        return [items[i : i + self.max_batch] for i in range(0, len(items), self.max_batch)]


def image_function(vision: PretrainedVision) -> EmbedImages:
    """The pure function from pixels to vectors, or to logits of labels; the batch may be symbolic.

    An encoder without a pooler gives the class token's state.
    """
    model = vision.model
    if isinstance(model, TwoTowerModel):
        return model.image_vectors
    if model.encoder.head is not None:
        return model.logits
    if model.encoder.pooler is None:
        return lambda params, pixels: model.hidden(params, pixels)[:, 0]
    return lambda params, pixels: model.pooled(params, model.hidden(params, pixels), None, pixels)


def output_width(vision: PretrainedVision) -> int:
    """Length of a picture's vector, or its number of logits."""
    model = vision.model
    if isinstance(model, EncoderModel):
        return model.labels or model.encoder.pooled_width
    return model.image.encoder.pooled_width


def bundle_parts(vision: PretrainedVision) -> tuple[EmbedImages, Any, str]:
    """Function, parameters and signature for ``ziggurat.serve.predict.export``.

    The batch ``b`` is symbolic; the size of images is the processor's.

    Raises:
        ModelError: the processor leaves sizes as they are.
    """
    size = vision.processor.config.size
    if size is None:
        raise ModelError(
            f"bundle of {vision.source}",
            found="an image processor that keeps the shape of pictures",
            expected="one that gives all pictures one size",
        )
    name = "logits" if isinstance(vision.model, EncoderModel) and vision.model.labels else "vector"
    signature = f"pixels:FP32[b,3,{size[0]},{size[1]}] -> {name}:FP32[b,{output_width(vision)}]"
    return image_function(vision), vision.params, signature
