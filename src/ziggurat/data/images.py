"""Batches of labelled images as a function of (configuration, seed, step), as for text.

Image ``r`` of an endless list is the one that stands at place ``r`` modulo the number of images in
that epoch's keyed order; rows ``[s b, (s + 1) b)`` are the batch of step ``s``. Augmentation is
keyed by the step and the row too, so nothing is replayed to resume.
"""

import hashlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Float

from ziggurat.core import config
from ziggurat.core.errors import DataError
from ziggurat.core.json_types import JsonMapping, JsonObject
from ziggurat.core.protocols import Batch
from ziggurat.data.ahead import Ahead
from ziggurat.data.dataset import check_facts, check_rows, digest
from ziggurat.data.image_sources import ImageSource, ImageStore, open_images
from ziggurat.data.order import Permutation

EVALUATION_STEPS = 1 << 30
"""Added to the numbers of evaluation batches, so that what is drawn for them (noise, times) is not
what is drawn for the training step of the same number."""


@config.node
class ImageData:
    """Settings of labelled images to train on."""

    kind: Literal["images"] = "images"
    source: ImageSource
    """Where images come from."""
    batch_size: int
    """Images in the global batch, over all hosts."""
    flip: bool = False
    """Mirror half of the images, left to right; not for digits or letters."""
    shift: int = 0
    """Move images by up to so many pixels in each direction, repeating what is at the edge."""
    shuffle: bool = True
    """A new keyed order in every epoch; else that of the source."""
    epochs: int | None = None
    """Passes over the images; without end if not given."""
    eval_fraction: float = 0.0
    """Share of images held out for evaluation, chosen by a hash of their pixels; in a directory, by
    their names below it."""
    prefetch: int = 4
    """Batches made ahead; 0 makes each when it is asked for."""

    def __post_init__(self) -> None:
        for key, least in (("batch_size", 1), ("shift", 0), ("prefetch", 0)):
            config.require(
                getattr(self, key) >= least, key, getattr(self, key), f"at least {least}"
            )
        config.require(self.epochs is None or self.epochs > 0, "epochs", self.epochs, "at least 1")
        held = self.eval_fraction
        config.require(0.0 <= held < 1.0, "eval_fraction", held, "0 or more and below 1")


class ImageDataset:
    """Batches of images; implements :class:`ziggurat.core.protocols.BatchSource`.

    A batch holds ``images`` (float32 ``[b, i, j, o]``, -1 to 1), ``labels``, ``step`` and ``index``
    (int32 ``[b]``; the last two key every draw for that row) and ``weight`` (float32 ``[b]``, 0 in
    the rows that fill up the last batch of the last epoch).

    Args:
        data: the run file's ``[data]``.
        store: the images.
        seed: the run's seed.
        split: which side of the held-out line; ``eval`` is one pass in the source's order, without
            augmentation.
        tokens: what an image is to the model, by which throughput is counted.

    Raises:
        DataError: no image is on that side.
    """

    def __init__(
        self,
        data: ImageData,
        store: ImageStore,
        seed: int,
        split: Literal["train", "eval"] = "train",
        tokens: int = 1,
    ):
        self.sequence_length = tokens
        self.config, self.store, self.seed, self.split = data, store, seed, split
        held = np.array([_fraction(name) < data.eval_fraction for name in store.identities])
        self._numbers = np.flatnonzero(held if split == "eval" else ~held)
        if not self._numbers.size:
            raise DataError(
                f"images for {split}",
                found=f"none of {store.count} with eval_fraction = {data.eval_fraction}",
                expected="at least one",
            )

    @property
    def batch_size(self) -> int:
        """Images of the global batch."""
        return self.config.batch_size

    @property
    def images_per_epoch(self) -> int:
        """Number of images in this split."""
        return len(self._numbers)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that hold each image once, rounded up."""
        return -(-self.images_per_epoch // self.batch_size)

    @property
    def steps(self) -> int | None:
        """Steps until the data ends; ``None`` if it never ends."""
        return None if self._end is None else -(-self._end // self.batch_size)

    @property
    def _end(self) -> int | None:
        epochs = 1 if self.split == "eval" else self.config.epochs
        return None if epochs is None else epochs * self.images_per_epoch

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Rows ``rows`` (default all) of the global batch of step ``step``.

        Raises:
            DataError: the data ends before ``step``, or ``rows`` is not within the batch.
        """
        first, stop = check_rows(rows, self.batch_size)
        if step < 0 or (self.steps is not None and step >= self.steps):
            fix = "raise data.epochs, or leave it out to train without end"
            raise DataError(f"step {step}", found=f"data for {self.steps} steps", fix=fix)
        within = np.arange(first, stop)
        places = step * self.batch_size + within
        counted = places < (places.max(initial=0) + 1 if self._end is None else self._end)
        numbers = self._at(np.where(counted, places, 0))
        images = self.store.read(numbers)
        if self.split == "train" and (self.config.flip or self.config.shift):
            images = np.stack([self._augmented(x, step, int(r)) for x, r in zip(images, within)])
        keyed = step + (EVALUATION_STEPS if self.split == "eval" else 0)
        return {
            "images": images.astype(np.float32),
            "labels": self.store.labels[numbers].astype(np.int32),
            "weight": counted.astype(np.float32),
            "step": np.full(len(within), keyed, np.int32),
            "index": within.astype(np.int32),
        }

    def iterate(self, start: int, rows: slice | None = None) -> Iterator[Batch]:
        """The batches from step ``start`` on, made ahead, until the data ends.

        Raises:
            DataError: as :meth:`batch`.
        """
        check_rows(rows, self.batch_size)
        made = self._made(start, rows)
        return Ahead(made, self.config.prefetch) if self.config.prefetch else made

    def state(self, step: int) -> JsonObject:
        """State that a checkpoint stores so that step ``step`` comes next."""
        epoch, place = divmod(step * self.batch_size, self.images_per_epoch)
        return {"step": step, "epoch": epoch, "place": place} | self._facts()

    def check_state(self, state: JsonMapping) -> int:
        """Compare a stored state with this data; returns its step.

        Raises:
            DataError: the images or a setting that decides batches is another than it was.
        """
        return check_facts(state, self._facts())

    def _facts(self) -> JsonObject:
        names = ("flip", "shift", "shuffle", "eval_fraction")
        return {
            "split": self.split,
            "seed": self.seed,
            "images": self.images_per_epoch,
            "content": self.store.content,
            "batch_size": self.batch_size,
            "order": digest({name: getattr(self.config, name) for name in names}),
        }

    def _made(self, step: int, rows: slice | None) -> Iterator[Batch]:
        while self.steps is None or step < self.steps:
            yield self.batch(step, rows)
            step += 1

    def _at(self, places: np.ndarray) -> np.ndarray:
        """Numbers of the images at places of the endless list."""
        epochs, within = np.divmod(places, self.images_per_epoch)
        if self.split == "train" and self.config.shuffle:
            for epoch in np.unique(epochs).tolist():
                here = epochs == epoch
                order = Permutation(self.images_per_epoch, self.seed, epoch, "images")
                within[here] = order(within[here])
        return self._numbers[within]

    def _augmented(
        self, image: Float[np.ndarray, "i j o"], step: int, row: int
    ) -> Float[np.ndarray, "i j o"]:
        from ziggurat.core import prng  # late: it imports JAX, which configuration must not

        draw = prng.host_stream(self.seed, "images augment", step, row)
        by = self.config.shift
        down, across = draw.integers(-by, by, 2, endpoint=True)
        if self.config.flip and draw.random() < 0.5:
            image = image[:, ::-1]
        rows = np.clip(np.arange(image.shape[0]) + down, 0, image.shape[0] - 1)
        columns = np.clip(np.arange(image.shape[1]) + across, 0, image.shape[1] - 1)
        return image[rows][:, columns]


def build_images(
    data: ImageData, seed: int, split: Literal["train", "eval"] = "train", tokens: int = 1
) -> ImageDataset:
    """The images a run file declares.

    Raises:
        DataError: nothing is there, or nothing on that side of the held-out line.
        EnvironmentError: a package that reads them is missing.
    """
    return ImageDataset(data, open_images(data.source), seed, split, tokens)


def _fraction(name: str) -> float:
    """A number of 0 to 1 that belongs to a name."""
    word = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(word, "little") / 2**64
