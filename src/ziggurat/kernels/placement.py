"""Where what is traced now will run: the one place that is asked by whatever chooses an
implementation by platform. A plan traces on one machine for another, so the machine itself is no
answer; a repository test (``tests/test_targets.py``) lists the few places that may ask it.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import jax

from ziggurat.mesh import active_layout

PORTABLE = "portable"
"""The answer for a program that is to run on several platforms."""
_exported: contextvars.ContextVar[str] = contextvars.ContextVar("exported", default="")


def platform() -> str:
    """Platform that a traced program is for: an export's, else the active layout's, else JAX's
    backend.

    >>> platform()
    'cpu'
    >>> with exporting(["cuda"]):
    ...     platform()
    'gpu'
    """
    if _exported.get():
        return _exported.get()
    layout = active_layout()
    return jax.default_backend() if layout is None else layout.platform


@contextlib.contextmanager
def exporting(platforms: Sequence[str]) -> Iterator[None]:
    """While tracing in this block, programs are for these platforms, as ``jax.export`` names them;
    for several of them :data:`PORTABLE` is the answer, which no platform's own kernel serves."""
    found = {"gpu" if name in ("cuda", "rocm") else name for name in platforms}
    token = _exported.set(found.pop() if len(found) == 1 else PORTABLE)
    try:
        yield
    finally:
        _exported.reset(token)


def one_device() -> bool:
    """Whether the program runs on one device, so that XLA has nothing to partition; true outside a
    layout.

    >>> one_device()
    True
    """
    layout = active_layout()
    return layout is None or layout.mesh.size == 1
