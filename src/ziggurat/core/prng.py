"""Counter-based randomness keyed by (purpose, step, index).

A draw depends on what it is for and where in the run it happens, never on how many devices, hosts
or restarts came before, so a change of topology or a resume alters no draw.

>>> a = stream(0, "dropout", step=3, index=1)
>>> b = stream(0, "dropout", step=3, index=1)
>>> bool((jax.random.key_data(a) == jax.random.key_data(b)).all())
True
"""

import hashlib

import jax
import numpy as np
from jaxtyping import Array, Int, Key


def purpose_id(purpose: str) -> int:
    """A stable 31-bit number for a purpose's name (BLAKE2; the same on every machine)."""
    return int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=4).digest(), "big") >> 1


def stream(
    seed: int | Int[Array, ""],
    purpose: str,
    step: int | Int[Array, ""] = 0,
    index: int | Int[Array, ""] = 0,
) -> Key[Array, ""]:
    """The key for one draw. ``step`` and ``index`` may be traced.

    Args:
        seed: the run's seed.
        purpose: what the draw is for, e.g. ``"init"`` or ``"sample"``.
        step: training step, or position in a sequence.
        index: global index within the step (example, layer), never a local one.
    """
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), purpose_id(purpose))
    return jax.random.fold_in(jax.random.fold_in(key, step), index)


def host_stream(seed: int, purpose: str, step: int = 0, index: int = 0) -> np.random.Generator:
    """Counter-based random generator of numpy on the host (Philox), keyed as :func:`stream` is."""
    return np.random.Generator(
        np.random.Philox(key=[seed, purpose_id(purpose)], counter=[0, 0, step, index])
    )
