"""Custom calls of a bundle's program, found and checked before it is compiled.

A custom call names a function in the server's own process: compiled as it stands, an unknown one
can read and write any memory there. So a program is read as StableHLO and refused unless every
target is one of those below, which are numerical and whose arguments XLA's typed interface checks.
"""

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ziggurat.serve.predict.manifest import BundleError

MARKERS = frozenset(
    {
        "AllocateBuffer",
        "SPMDFullToShardShape",
        "SPMDShardToFullShape",
        "Sharding",
        "annotate_device_placement",
        "shape_assertion",
        "stablehlo.dynamic_approx_top_k",
        "stablehlo.dynamic_reduce_window",
        "stablehlo.dynamic_rng_bit_generator",
        "stablehlo.dynamic_top_k",
    }
)
"""Targets that tell the compiler something and call nothing."""
NUMERICAL = (
    "ApproxTopK",
    "Eigh",
    "LuDecomposition",
    "ProductOfElementaryHouseholderReflectors",
    "Qr",
    "cu_lu_pivots_to_permutation",
    "cu_threefry2x32_ffi",
    "cusolver_*_ffi",
    "cusparse_gtsv2_ffi",
    "hip_lu_pivots_to_permutation",
    "hip_threefry2x32_ffi",
    "hipsolver_*_ffi",
    "lapack_*_ffi",
)
"""Patterns of linear algebra, sampling and sorting in libraries that JAX brings along."""
_REFUSED_OPS = ("infeed", "outfeed", "send", "recv")


def check(exported: Any, path: object, allowed: Sequence[str] = ()) -> list[str]:
    """Return the numerical targets that a program calls, and refuse all others.

    Args:
        exported: from ``jax.export.deserialize``.
        path: the bundle's, for the error.
        allowed: further targets, by name or pattern, that the operator vouches for.

    Raises:
        BundleError: it calls another target, talks to the host, or is no StableHLO.
    """
    numerical = set()
    for name, target in operations(exported, path):
        kind = name.rpartition(".")[2]
        if kind in _REFUSED_OPS:
            raise BundleError(
                f"bundle {path}: program",
                found=f"operation {name}",
                expected="a program that talks to nobody",
                fix="export it without callbacks",
            )
        if kind != "custom_call" or target in MARKERS:
            continue
        if not any(fnmatch.fnmatchcase(target, known) for known in (*NUMERICAL, *allowed)):
            raise BundleError(
                f"bundle {path}: program",
                found=f"a custom call of {target[:80]!r}",
                expected="calls of XLA's own linear algebra at most",
                fix="if you trust it and the function is registered here, allow it by name "
                "(custom_calls)",
            )
        numerical.add(target)
    return sorted(numerical)


def operations(exported: Any, path: object) -> Iterator[tuple[str, str]]:
    """Names of all operations in a program, and of a custom call its target.

    Raises:
        BundleError: it cannot be read as StableHLO.
    """
    from jax.extend.mlir import ir
    from jax.interpreters import mlir

    with mlir.make_ir_context():
        try:
            module = ir.Module.parse(exported.mlir_module())
        except Exception as error:  # the parser's own error, or the deserialiser's
            line = str(error).strip().partition("\n")[0]
            raise BundleError(
                f"bundle {path}: program", found=line[:200], expected="StableHLO"
            ) from None
        yield from _inside(module.operation)


def _inside(operation: Any) -> Iterator[tuple[str, str]]:
    for region in operation.regions:
        for block in region.blocks:
            for inner in _operations(block):
                name, target = inner.name, ""
                if name.endswith("custom_call"):
                    target = str(inner.attributes["call_target_name"].value)
                yield name, target
                yield from _inside(inner)


def _operations(block: Any) -> Iterable[Any]:
    return (inner.operation for inner in block.operations)
