"""Memory and collectives of a training step from shapes and shardings alone, without compiling.

What the search ranks layouts by. The compiled program replaces both where there is one.

Collectives are those of fully sharded data parallelism and of tensor parallelism: weights are
gathered in the compute type for each forward and each backward pass, their gradients scattered in
the same type; where a product contracts a dimension cut over ``tensor``, activations are summed,
forwards, backwards, and once more when the forward pass is repeated (Shoeybi et al. 2019,
https://arxiv.org/abs/1909.08053). Under ``context`` every device gathers keys and values.

Memory is the arguments (exact), the gradients in the parameters' type, what the scan over layers
keeps for the backward pass (from the program's jaxpr), one layer's gathered weights twice (the next
ones arrive while these are used), and the largest of a layer's activations and the loss's chunks.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from ziggurat.plan import work
from ziggurat.plan.fabric import Collective, Fabric

BATCH_AXES = ("data", "fsdp", "expert")
COMPUTE_BYTES = 2
"""Bytes of the compute type; a plan is for bfloat16."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A training step as the plan sees it; everything abstract."""

    jaxpr: Any
    """Of the whole step."""
    params: dict[str, Any]
    """Name -> shape, type and sharding of each parameter."""
    arguments: list[Any]
    """The same of every argument: state and batch."""
    tokens: int
    """Tokens of a step."""
    accumulate: int
    """Micro-batches of a step."""
    remat: str
    """``none``, ``full`` or ``dots``."""


def argument_bytes(arguments: list[Any]) -> int:
    """Bytes per device of what a step is given, by its shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in arguments
    )


def collectives(step: Step, fabric: Fabric) -> list[Collective]:
    """What a step exchanges under fully sharded data parallelism and tensor parallelism."""
    found: list[Collective] = []
    sizes = dict(zip(fabric.axes, fabric.shape))

    def add(kind: str, size: float, axes: tuple[str, ...], count: float, purpose: str) -> None:
        if math.prod(sizes[axis] for axis in axes) > 1:
            route = fabric.along(axes)
            found.append(
                Collective(kind=kind, bytes=size, route=route, count=count, purpose=purpose)
            )

    for name, leaf in step.params.items():
        cuts = _cuts(leaf)
        used = {axis for part in cuts for axis in part}
        kept = sizes["tensor"] if "tensor" in used else 1
        layers = leaf.shape[0] if leaf.ndim == 3 else 1
        times = float(layers * step.accumulate)
        size = leaf.size / layers / kept * COMPUTE_BYTES
        spread = (*BATCH_AXES, "context")
        gathered = tuple(axis for axis in spread if axis in used)
        add("all-gather", size, gathered, 2 * times, "weights")
        add("reduce-scatter", size, gathered, times, "gradients")
        shards = math.prod(sizes[axis] for axis in gathered)
        replicas = tuple(axis for axis in spread if axis not in used)
        add("all-reduce", size / shards, replicas, times, "gradients")
        stream = _local_tokens(step, sizes) * _width(step) * COMPUTE_BYTES
        if leaf.ndim == 3 and "tensor" in cuts[1]:
            passes = 3 if step.remat == "full" else 2
            add("all-reduce", stream, ("tensor",), passes * times, "activations")
        elif leaf.ndim == 2 and "tensor" in cuts[0]:
            add("all-reduce", stream, ("tensor",), times, "activations")
        if name.endswith(("key.kernel", "value.kernel")):
            rows = _local_tokens(step, sizes) * sizes["context"]
            size = rows * leaf.shape[-1] / kept * COMPUTE_BYTES
            add("all-gather", size, ("context",), 2 * times, "keys and values")
            add("reduce-scatter", size, ("context",), times, "keys and values")
    return found


def memory(step: Step, fabric: Fabric) -> dict[str, float]:
    """Bytes per device by kind; ``peak_estimate_bytes`` is the larger of the peaks in the loss and
    in the backward pass of a layer."""
    sizes = dict(zip(fabric.axes, fabric.shape))
    arguments = argument_bytes(step.arguments)
    tensor = sizes["tensor"]
    gradients = argument_bytes(list(step.params.values()))
    stacked = [leaf for leaf in step.params.values() if leaf.ndim == 3]
    tables = [leaf for leaf in step.params.values() if leaf.ndim == 2]
    layer_weights = sum(leaf.size / leaf.shape[0] for leaf in stacked) / tensor * COMPUTE_BYTES
    head = max((leaf.size for leaf in tables), default=0) / tensor
    tokens = _local_tokens(step, sizes)
    widths = sum(leaf.shape[-1] / (tensor if "tensor" in _cuts(leaf)[2] else 1) for leaf in stacked)
    # a layer's products and their gradients, and its norms and residuals in float32
    layer = tokens * (2 * COMPUTE_BYTES * widths + 4 * 4 * _width(step))
    kept = _kept_for_backward(step, sizes)
    logits = _logits_chunk(step) / tensor / (sizes["context"] * _batch(sizes))
    # the head gathered, its gradient so far and a chunk's in float32; logits and their gradient
    loss = head * (8 + COMPUTE_BYTES) + 2 * logits + tokens * _width(step) * COMPUTE_BYTES
    backward = gradients + 2 * layer_weights + layer
    return {
        "argument_bytes": float(arguments),
        "gradient_bytes": float(gradients),
        "kept_for_backward_bytes": kept,
        "working_bytes": float(max(loss, backward - gradients)),
        "peak_estimate_bytes": float(arguments + kept + max(loss, backward)),
    }


def _batch(sizes: dict[str, int]) -> int:
    return math.prod(sizes[axis] for axis in BATCH_AXES)


def _local_tokens(step: Step, sizes: dict[str, int]) -> float:
    """Tokens of a micro-batch on one device."""
    return step.tokens / step.accumulate / _batch(sizes) / sizes["context"]


def _width(step: Step) -> int:
    """The model's width: the last dimension of the embedding table."""
    return next(leaf.shape[-1] for leaf in step.params.values() if leaf.ndim == 2)


def _cuts(leaf: Any) -> list[tuple[str, ...]]:
    """Mesh axes over which each dimension of a parameter is cut."""
    parts = list(leaf.sharding.spec) + [None] * (leaf.ndim - len(leaf.sharding.spec))
    return [part if isinstance(part, tuple) else (part,) if part else () for part in parts]


def _kept_for_backward(step: Step, sizes: dict[str, int]) -> float:
    """Bytes that scans stack up per device and that are no gradients: what their backward passes
    need. Wide activations are cut over ``tensor``, the residual stream is not."""
    gradients = {(leaf.shape, leaf.size) for leaf in step.params.values() if leaf.ndim > 1}
    gradients |= {((s[0], 1, *s[1:]), size) for s, size in gradients}
    cut_last = [leaf for leaf in step.params.values() if "tensor" in _cuts(leaf)[-1]]
    wide = {leaf.shape[-1] for leaf in cut_last} - {_width(step)}
    tokens = step.tokens / step.accumulate
    most = 0.0
    for scans in _scans(step.jaxpr.jaxpr):
        kept = 0.0
        for equation in scans:
            carried = equation.params["num_carry"]
            for variable in equation.outvars[carried:]:
                aval = variable.aval
                if (aval.shape, aval.size) in gradients or type(variable).__name__ == "DropVar":
                    continue
                width = aval.size / tokens / max(1, equation.params["length"])
                cut = sizes["tensor"] if width in wide else 1
                kept += aval.size * aval.dtype.itemsize / cut
        most = max(most, kept)
    return most / _batch(sizes) / sizes["context"]


def _scans(jaxpr: Any) -> Iterator[list[Any]]:
    """The scans of each level of a program that follow one another."""
    found: list[Any] = []
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "pallas_call":
            continue
        if name == "scan":
            found.append(equation)
            yield from _scans(equation.params["jaxpr"].jaxpr)
        else:
            called = work.called(equation)
            if called is not None:
                inner = list(_scans(called))
                found += inner.pop() if inner else []
                yield from inner
    yield found


def _logits_chunk(step: Step) -> float:
    """Bytes of the float32 logits that exist at once, over all devices."""
    rows = {leaf.shape[0] for leaf in step.params.values() if leaf.ndim == 2}

    def largest(jaxpr: Any) -> float:
        most = 0.0
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            if name == "dot_general" and equation.outvars[0].aval.shape[-1:] in {
                (v,) for v in rows
            }:
                most = max(most, float(equation.outvars[0].aval.size) * 4)
            elif name != "pallas_call":
                inner = work.called(equation)
                most = max(most, largest(inner)) if inner is not None else most
        return most

    return largest(step.jaxpr.jaxpr)
