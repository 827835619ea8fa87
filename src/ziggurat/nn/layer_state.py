"""The contract of a layer's state: what a mixer keeps of earlier tokens, declared as data.

A mixer is whatever mixes positions: attention, latent attention, a gated delta net. Its config
declares a :class:`StateSpec`, and everything that holds state is laid out by it and knows no mixer:
the static cache of :class:`~ziggurat.nn.attention_context.Cached`, the paged cache of
``ziggurat.serve.llm``, the memory that ``ziggurat plan`` counts.

==================  ==========================================  ==============================
                    :class:`KeyValueSpec`                       :class:`RecurrentSpec`
==================  ==========================================  ==============================
holds               a key and a value of every token            arrays of one size, however
                                                                many tokens there were
a longer sequence   takes more blocks                           takes no more memory
packed rows         a query sees its own document               a document's first token
                                                                starts from zero
equal prefixes      share blocks                                need a snapshot at their end
on a mesh           sharded over ``kv_heads``                   sharded by each array's axes
==================  ==========================================  ==============================

>>> KeyValueSpec(kv_heads=2, key_dim=64, value_dim=64).token_bytes(jnp.bfloat16)
512
>>> KeyValueSpec(kv_heads=2, key_dim=64, value_dim=64, storage="int8").token_bytes(jnp.bfloat16)
272
"""

import dataclasses
import math
from typing import Any, Literal

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from ziggurat.kernels.key_values import ROUNDED, KeyValues
from ziggurat.mesh import Layout

Storage = Literal["compute", "int8", "fp8_e4m3", "fp8_e5m2"]
Axes = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyValueSpec:
    """State of an attention layer: a key ``[k, c]`` and a value ``[k, z]`` for each token."""

    kv_heads: int
    key_dim: int
    value_dim: int
    storage: Storage = "compute"
    """``compute``: in the type of computing; others: rounded to that type, with a float32 scale for
    each head and token (see :func:`ziggurat.kernels.key_values.quantized`)."""
    window: int | None = None
    """Newest tokens that are read again; ``None``: all."""

    shared_by = "blocks"

    @property
    def layout(self) -> "KeyValueSpec":
        """The spec reduced to what changes memory; layers of equal layout share a pool."""
        return dataclasses.replace(self, window=None)

    def zeros(self, leading: tuple[int, ...], dtype: DTypeLike) -> KeyValues:
        """Empty keys and values ``[*leading, c]`` and ``[*leading, z]``.

        Args:
            leading: the holder's dimensions, the heads among them.
            dtype: of computing.
        """
        kind = ROUNDED.get(self.storage, dtype)
        scales = (jnp.zeros(leading, jnp.float32),) * 2 if self.storage in ROUNDED else ()
        dims = (self.key_dim, self.value_dim)
        return KeyValues(*(jnp.zeros((*leading, dim), kind) for dim in dims), *scales)

    def token_bytes(self, dtype: DTypeLike) -> int:
        """Bytes of one token in one layer."""
        channels = self.kv_heads * (self.key_dim + self.value_dim)
        if self.storage in ROUNDED:
            return channels + 2 * 4 * self.kv_heads
        return channels * jnp.dtype(dtype).itemsize

    def sequence_bytes(self, dtype: DTypeLike) -> int:
        """Bytes of one sequence in one layer beside those of its tokens."""
        return 0


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """One array of a recurrent state, for one sequence."""

    shape: tuple[int, ...]
    axes: Axes
    """Logical axes of its dimensions."""
    dtype: Any = None
    """``None``: the type of computing."""


@dataclasses.dataclass(frozen=True)
class RecurrentSpec:
    """State of a recurrent layer: arrays of fixed size for each sequence."""

    arrays: tuple[ArraySpec, ...]

    @property
    def shared_by(self) -> Literal["blocks", "snapshot"]:
        """Requirement of a shared prefix: a snapshot at its end, or nothing but blocks where there
        are no arrays."""
        return "snapshot" if self.arrays else "blocks"

    @property
    def layout(self) -> "RecurrentSpec":
        """The spec reduced to what changes memory; see :attr:`KeyValueSpec.layout`."""
        return self

    def zeros(self, leading: tuple[int, ...], dtype: DTypeLike) -> tuple[Array, ...]:
        """Arrays ``[*leading, *shape]`` of zeros, the state before the first token."""
        return tuple(jnp.zeros((*leading, *a.shape), a.dtype or dtype) for a in self.arrays)

    def token_bytes(self, dtype: DTypeLike) -> int:
        """Bytes of one token in one layer: none."""
        return 0

    def sequence_bytes(self, dtype: DTypeLike) -> int:
        """Bytes of one sequence in one layer."""
        sizes = (math.prod(a.shape) * jnp.dtype(a.dtype or dtype).itemsize for a in self.arrays)
        return sum(sizes)


StateSpec = KeyValueSpec | RecurrentSpec
NO_STATE = RecurrentSpec(())
"""Spec of a layer that keeps nothing, as it attends to the keys and values of an earlier layer."""


def stored_as(spec: StateSpec, storage: Storage) -> StateSpec:
    """Change how a spec's keys and values are stored; recurrent states stay as they are."""
    if isinstance(spec, KeyValueSpec):
        return dataclasses.replace(spec, storage=storage)
    return spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixerCost:
    """Floating-point operations of a mixer, forward, without its weight matrices."""

    per_pair: int = 0
    """For each query and each key that it sees."""
    per_token: int = 0
    """For each token, whatever the length."""


def key_value_axis(layout: Layout, spec: KeyValueSpec) -> str | None:
    """The logical axis over which the heads of a cache are sharded: none where fewer heads than
    devices would leave some without one; they are then held on each."""
    return "kv_heads" if spec.kv_heads % layout.ways("kv_heads") == 0 else None
