"""One inference request, whichever way it came: its parameters, what it asks for, and its run."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ziggurat.core.errors import did_you_mean
from ziggurat.serve.errors import RequestError
from ziggurat.serve.predict.repository import Version
from ziggurat.serve.predict.signature import Tensor

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "sequence_id": (0, ""),
    "sequence_start": (False,),
    "sequence_end": (False,),
    "priority": (0,),
}
"""Parameters of Triton's that are not applied, with the values by which they ask for nothing."""


@dataclasses.dataclass(slots=True)
class Asked:
    """What a request asks for, decoded."""

    version: Version
    inputs: dict[str, Shaped[np.ndarray, "..."]]
    outputs: list[str]
    """Names, in the order of the answer."""
    timeout_us: int = 0

    async def run(self) -> list[tuple[Tensor, Shaped[np.ndarray, "..."]]]:
        """The outputs asked for."""
        values = await self.version.queue.infer(self.inputs, self.timeout_us)
        signature = self.version.bundle.manifest.signature
        both = {t.name: (t, value) for t, value in zip(signature.outputs, values, strict=True)}
        return [both[name] for name in self.outputs]


@contextlib.contextmanager
def counting(version: Version) -> Iterator[None]:
    """Count a request that is refused while it is decoded; later the queue counts it."""
    try:
        yield
    except RequestError:
        version.statistics.failed("OTHER", 0)
        raise


def check_inputs(version: Version, names: Iterable[str]) -> None:
    """Refuse an unknown, doubled or missing input by its name.

    Raises:
        RequestError: as said.
    """
    wanted, given = version.inputs, list(names)
    for name in given:
        if name not in wanted:
            fix = did_you_mean(name, wanted)
            raise RequestError(
                "input",
                found=repr(name[:80]),
                expected=f"one of {', '.join(wanted)}",
                fix=fix,
                param=name[:80],
            )
    if len(given) != len(wanted):
        missing = [name for name in wanted if name not in given]
        raise RequestError(
            f"input {(missing or given)[0]}",
            found="nothing" if missing else "it twice",
            expected="each input once",
            param=(missing or given)[0],
        )


def check_outputs(version: Version, names: list[str]) -> list[str]:
    """The outputs to answer with: those named, or all.

    Raises:
        RequestError: an unknown or doubled name.
    """
    known = [tensor.name for tensor in version.bundle.manifest.signature.outputs]
    for name in names:
        if name not in known or names.count(name) > 1:
            raise RequestError(
                "output",
                found=repr(name[:80]),
                expected=f"one of {', '.join(known)}, once",
                fix=did_you_mean(name, known),
                param=name[:80],
            )
    return names or known


def read_timeout(parameters: Mapping[str, Any]) -> int:
    """The request parameter ``timeout`` (microseconds); every other one is refused.

    Raises:
        RequestError: a parameter that is not applied, or a timeout that is not a whole number.
    """
    timeout = 0
    for name, value in parameters.items():
        if name == "timeout":
            if type(value) is not int or not 0 <= value < 2**53:
                raise RequestError(
                    "parameter timeout",
                    found=repr(value)[:80],
                    expected="microseconds, 0 or more",
                    param=name,
                )
            timeout = value
        else:
            _refuse_unless_neutral(name, value)
    return timeout


def refuse_parameters(parameters: Mapping[str, Any], where: str) -> None:
    """Refuse every parameter of an input or output.

    Raises:
        RequestError: there is one.
    """
    for name in parameters:
        raise RequestError(
            f"{where}: parameter {name[:80]}",
            found=repr(parameters[name])[:80],
            expected="no such parameter: it is not applied here",
            param=name[:80],
        )


def _refuse_unless_neutral(name: str, value: Any) -> None:
    if not any(type(value) is type(ok) and value == ok for ok in _NEUTRAL.get(name, ())):
        raise RequestError(
            f"parameter {name[:80]}",
            found=repr(value)[:80],
            expected="no such parameter: it is not applied here",
            param=name[:80],
        )
