"""One inference request, whichever way it came: its parameters, what it asks for, and its run."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped

from ziggurat.core.errors import did_you_mean
from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.serve.errors import RequestError
from ziggurat.serve.predict.signature import Tensor

if TYPE_CHECKING:  # a process that only decodes imports no JAX
    from ziggurat.serve.predict.repository import Version

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "sequence_id": (0, ""),
    "sequence_start": (False,),
    "sequence_end": (False,),
}
"""Parameters of sequences, which bundles have not, with the values that ask for nothing."""
_MEMORY = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
"""Parameters by which a tensor lies elsewhere; clients that use them send no data."""
NOT_OF_OUTPUTS = (*_MEMORY, "classification")
"""Parameters of outputs that would change the answer."""


@dataclasses.dataclass(slots=True)
class Decoded:
    """Content of a request, from HTTP or gRPC."""

    id: str
    inputs: dict[str, Shaped[np.ndarray, "..."]]
    outputs: list[tuple[str, JsonObject]]
    """Names asked for, with their parameters."""
    parameters: JsonObject


@dataclasses.dataclass(slots=True)
class InferenceCall:
    """Decoded inference request: model version, inputs and wanted outputs."""

    version: "Version"
    inputs: dict[str, Shaped[np.ndarray, "..."]]
    outputs: list[str]
    """Names, in the order of the answer."""
    timeout_us: int = 0

    async def run(self) -> list[tuple[Tensor, Shaped[np.ndarray, "..."]]]:
        """Run the model and return the outputs asked for."""
        values = await self.version.queue.infer(self.inputs, self.timeout_us)
        signature = self.version.bundle.manifest.signature
        both = {t.name: (t, value) for t, value in zip(signature.outputs, values, strict=True)}
        return [both[name] for name in self.outputs]


@contextlib.contextmanager
def counting(version: "Version") -> Iterator[None]:
    """Count a request that is refused while it is decoded; later the queue counts it."""
    try:
        yield
    except RequestError:
        version.statistics.failed("OTHER", 0)
        raise


def check_inputs(wanted: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Refuse an unknown, doubled or missing input by its name.

    Raises:
        RequestError: as said.
    """
    given = list(names)
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


def check_outputs(version: "Version", names: list[str]) -> list[str]:
    """Names of the outputs to answer with: those in the request, or all.

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


def asked_of(version: "Version", decoded: Decoded) -> tuple[InferenceCall, list[bool]]:
    """Build the inference call of a request, with whether each output is sent as bytes.

    Raises:
        RequestError: a parameter or an output that there is not.
    """
    parameters = dict(decoded.parameters)
    default = _flag(parameters.pop("binary_data_output", False), "binary_data_output")
    binary = {}
    for name, given in decoded.outputs:
        own = dict(given)
        binary[name] = _flag(own.pop("binary_data", default), "binary_data")
        refuse_parameters(own, f"output {name[:80]}", NOT_OF_OUTPUTS)
    names = check_outputs(version, [name for name, _ in decoded.outputs])
    asked = InferenceCall(version, decoded.inputs, names, read_timeout(parameters))
    return asked, [binary.get(name, default) for name in names]


def read_timeout(parameters: JsonMapping) -> int:
    """The request parameter ``timeout`` (microseconds).

    Others are the client's own, or (``priority``) for what bundles have not; they change no result.

    Raises:
        RequestError: a parameter that would change the result, or a timeout that is not a whole
            number.
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
        elif name in _NEUTRAL:
            neutral = any(type(value) is type(ok) and value == ok for ok in _NEUTRAL[name])
            if not neutral:
                raise _not_applied(f"parameter {name}", name, value, "bundles keep no sequences")
    return timeout


def refuse_parameters(
    parameters: JsonMapping, where: str, refused: Iterable[str] = _MEMORY
) -> None:
    """Refuse the parameters of an input or output that would change the result.

    Raises:
        RequestError: there is one.
    """
    for name in refused:
        if name in parameters:
            raise _not_applied(f"{where}: parameter {name}", name, parameters[name], "")


def _not_applied(what: str, name: str, value: Json, why: str) -> RequestError:
    return RequestError(
        what,
        found=repr(value)[:80],
        expected="no such parameter: it is not applied here",
        fix=why,
        param=name,
    )


def _flag(value: Json, name: str) -> bool:
    if type(value) is not bool:
        raise RequestError(
            f"parameter {name}", found=repr(value)[:40], expected="true or false", param=name
        )
    return value
