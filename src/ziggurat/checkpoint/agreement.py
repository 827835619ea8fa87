"""Agreement of processes: a failure on one process becomes a failure on all of them.

A process that failed alone would leave the others waiting for it. Every shared piece of work
therefore ends with each process telling all others how it went.
"""

import re
from collections.abc import Callable
from typing import Any

from ziggurat.checkpoint.manifest import DamagedError
from ziggurat.core.errors import CheckpointError, ZigguratError
from ziggurat.core.json_types import Json
from ziggurat.mesh import Processes

_KINDS: dict[str, type[CheckpointError]] = {
    "DamagedError": DamagedError,
    "CheckpointError": CheckpointError,
}


_SYSTEM_ERROR = re.compile(r"([^:]+) \[os_error_code='\d+'\]")
"""How TensorStore ends its long lines when the operating system refused something."""


class OtherProcessError(Exception):
    """Error: another process could not do its part, for a reason outside of checkpoints."""


def reason(error: BaseException) -> str:
    """Describe an exception in one short line.

    >>> reason(ValueError("RESOURCE_EXHAUSTED: Error writing ...: No space [os_error_code='28']"))
    'No space'
    >>> reason(OSError(28, "No space left on device", "a/file"))
    "OSError: [Errno 28] No space left on device: 'a/file'"
    """
    if isinstance(error, (ZigguratError, OtherProcessError)):
        return str(error)
    if system := _SYSTEM_ERROR.search(str(error)):
        return system[1].strip()
    line = str(error).strip().partition("\n")[0][:300]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def together(processes: Processes, name: str, call: Callable[[], Json]) -> list[Json]:
    """Run ``call()`` on every process and collect the results (JSON) in their order.

    Raises:
        Exception: what ``call`` raised here, or the error of the first process that failed, as
            :class:`DamagedError`, :class:`CheckpointError` or :class:`OtherProcessError`.
        EnvironmentError: a process did not answer.
    """
    own: Exception | None = None
    answer: dict[str, Any]
    try:
        answer = {"value": call()}
    except Exception as error:
        own, kind = error, type(error).__name__
        detail = {"files": error.files} if isinstance(error, DamagedError) else {}
        answer = {"error": reason(error), "kind": kind} | detail
    if processes.count == 1:
        if own is not None:
            raise own
        return [answer["value"]]
    answers = processes.gather(name, answer)
    failed = [(index, entry) for index, entry in enumerate(answers) if "error" in entry]
    if not failed:
        return [entry["value"] for entry in answers]
    index, first = failed[0]
    text = f"process {index}: {first['error']}"
    error = _KINDS.get(first["kind"], OtherProcessError)(text)
    if isinstance(error, DamagedError):
        for _, entry in failed:
            error.files |= entry.get("files", {})
    raise error from own
