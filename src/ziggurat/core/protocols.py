"""Protocols by which sibling packages meet without importing each other."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from ziggurat.core.json_types import JsonObject

Batch = dict[str, np.ndarray]
"""Rows of one global batch. Keys of a language-model batch, all ``[b, t]``:

``tokens`` (int32) inputs; ``targets`` (int32) the token that follows each input; ``segment_ids``
(int32) document number within the row starting at 1, 0 is padding; ``positions`` (int32) position
within the document; ``loss_mask`` (float32) 1 where the target counts.
"""


@runtime_checkable
class Device(Protocol):
    """A device as JAX has it: ``jax.Device``, which type checkers take for a variable."""

    @property
    def id(self) -> int: ...

    @property
    def platform(self) -> str:
        """``cpu``, ``gpu`` or ``tpu``."""
        ...

    @property
    def process_index(self) -> int:
        """Number of the process that it belongs to."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a generation; the first also ends a training document."""
        ...

    @property
    def chat_template(self) -> str | None: ...

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...


@runtime_checkable
class BatchSource(Protocol):
    """Batches as a function of the step: the contract of ``ziggurat.data``."""

    @property
    def batch_size(self) -> int:
        """Rows of the global batch."""
        ...

    def batch(self, step: int, rows: slice | None = None) -> Batch:
        """Rows ``rows`` (default all) of the global batch of step ``step``."""
        ...

    def iterate(self, start: int, rows: slice | None = None) -> Iterator[Batch]:
        """Batches from step ``start`` on, prefetched."""
        ...

    def state(self, step: int) -> JsonObject:
        """State that a checkpoint stores so that step ``step`` comes next; JSON, a few hundred
        bytes."""
        ...


@runtime_checkable
class MetricSink(Protocol):
    """Receives scalars whose names carry their unit (``step_time_s``, ``tokens_per_s``)."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...
