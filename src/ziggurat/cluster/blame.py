"""Whether an exception is the trace of a peer that is gone, or a mistake of the program itself.

It is decided on the host that raised, by class: texts and tracebacks are the user's and may hold
any word. A peer's loss shows as ``PeerLostError`` (ours, of what goes through the coordination
service) or as jaxlib's own error class with a status that only a collective, or the distributed
runtime, gives it. A callback that raises comes as jaxlib's class too, but with another status.
"""

import re

from ziggurat.mesh.processes import PeerLostError

_STATUS = re.compile(
    r"(?:UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED)\b"
    r"|[A-Z_]+: (?:[A-Z][\w ]*: )*(?:Gloo|NCCL|RCCL) "
)
"""How the message of jaxlib (0.10) begins after a collective failed: the status, then who says it;
``UNKNOWN: Gloo all-reduce failed: ... Connection closed by peer``."""


def of_a_peer(error: BaseException) -> bool:
    """Whether an exception, or one in its chain of causes, says that another process of the world
    failed.

    >>> of_a_peer(RuntimeError("Connection string for the store is empty"))
    False
    >>> of_a_peer(PeerLostError("a barrier", found="nobody"))
    True
    """
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        if isinstance(now, PeerLostError) or _of_a_collective(now):
            return True
        seen.add(id(now))
        hidden = now.__suppress_context__
        now = now.__cause__ if now.__cause__ is not None or hidden else now.__context__
    return False


def _of_a_collective(error: BaseException) -> bool:
    import jax

    # a class derived from it is the user's
    return type(error) is jax.errors.JaxRuntimeError and bool(_STATUS.match(str(error)))
