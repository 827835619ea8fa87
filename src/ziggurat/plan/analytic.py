"""Memory and collectives of a training step from shapes and shardings alone, without compiling.

What the search ranks layouts by. The compiled program replaces both where there is one.

Collectives are those of fully sharded data parallelism and of tensor parallelism: weights are
gathered in the compute type for each forward and each backward pass, their gradients scattered in
the same type; where a matmul contracts a dimension cut over ``tensor``, activations are summed,
forwards, backwards, and once more when the forward pass is repeated (Shoeybi et al. 2019,
https://arxiv.org/abs/1909.08053). Under ``context`` every device gathers keys and values.

Experts that are cut over a mesh axis get the tokens of all its devices, and their sums go back.
Which dimension of an array is which is declared by the model's logical axes.

Memory is the arguments (exact), the gradients in float32, what the scan over layers
keeps for the backward pass (from the program's jaxpr), one layer's gathered weights twice (the next
ones arrive while these are used), and the largest of a layer's activations and the loss's chunks.
Scores of attention that no kernel keeps on the chip, and what experts write, are added to a layer's
activations (:mod:`ziggurat.plan.living`).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from ziggurat.mesh.config import DEFAULT_RULES
from ziggurat.plan import living
from ziggurat.plan.equations import Equation, called
from ziggurat.plan.fabric import Collective, Fabric

BATCH_AXES = DEFAULT_RULES["batch"]
SUM_BYTES = 4
"""Bytes of a gradient's sum, which is float32 whatever the parameters are."""
COMPUTE_BYTES = 2
"""Bytes of the compute type; a plan is for bfloat16."""
TOKENS = "tokens of experts"
"""Purpose of collectives that bring tokens to the devices of their experts."""
Add = Callable[[str, float, tuple[str, ...], float, str], None]
"""Takes kind, bytes, mesh axes, times a step and purpose of a collective."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedWeight:
    """A weight of the step: an array that it multiplies by or looks up in, with the meaning of its
    dimensions."""

    array: jax.ShapeDtypeStruct
    """Shape, type and sharding."""
    axes: tuple[str | None, ...]
    """Logical axis names, as the model declares them."""
    trained: bool = True
    """Whether it has a gradient."""

    @property
    def layers(self) -> int:
        """Number of layers stacked in it."""
        return self.array.shape[self.axes.index("layers")] if "layers" in self.axes else 1

    @property
    def of_experts(self) -> bool:
        """Whether it holds one matrix per expert."""
        return "experts" in self.axes

    @property
    def is_table(self) -> bool:
        """Whether it has a row per token of the vocabulary."""
        return "vocab" in self.axes

    @property
    def is_kernel(self) -> bool:
        """Whether it is a matrix ``[inputs, outputs]`` that activations are multiplied by, or a
        stack of them; tables of the vocabulary are not."""
        own = [axis for axis in self.axes if axis not in ("layers", "experts")]
        return len(own) == 2 and not self.is_table

    @property
    def cuts(self) -> list[tuple[str, ...]]:
        """Mesh axes over which each dimension is cut."""
        spec, ndim = self.array.sharding.spec, self.array.ndim
        parts = list(spec) + [None] * (ndim - len(spec))
        return [part if isinstance(part, tuple) else (part,) if part else () for part in parts]

    def kept_ways(self, sizes: dict[str, int]) -> int:
        """Number of shards it keeps while it is multiplied: those of ``tensor`` and of the experts'
        axes."""
        cuts = self.cuts
        kept = {axis for part in cuts for axis in part if axis == "tensor"}
        if self.of_experts:
            kept |= set(cuts[self.axes.index("experts")])
        return math.prod(sizes[axis] for axis in kept)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A training step as the analytic plan sees it; holds shapes only."""

    jaxpr: ClosedJaxpr
    """Jaxpr of the whole step."""
    weights: dict[str, PlannedWeight]
    """By name, frozen ones too."""
    arguments: list[jax.ShapeDtypeStruct]
    """Shape, type and sharding of every argument: state, batch and what is frozen."""
    tokens: int
    """Tokens of a step."""
    accumulate: int
    """Micro-batches of a step."""
    remat: str
    """``none``, ``full`` or ``dots``."""

    @property
    def width(self) -> int:
        """The model's width: the size of its dimensions called ``embed``."""
        found = [
            size
            for weight in self.weights.values()
            for axis, size in zip(weight.axes, weight.array.shape)
            if axis == "embed"
        ]
        return max(found, key=found.count, default=0)

    @property
    def vocabulary(self) -> set[int]:
        """Sizes of the dimensions called ``vocab``."""
        return {
            size
            for weight in self.weights.values()
            for axis, size in zip(weight.axes, weight.array.shape)
            if axis == "vocab"
        }

    @property
    def trained(self) -> list[jax.ShapeDtypeStruct]:
        """Shape, type and sharding of each array that has a gradient."""
        return [weight.array for weight in self.weights.values() if weight.trained]


def argument_bytes(arguments: list[jax.ShapeDtypeStruct], least: int = 1) -> int:
    """Bytes per device of a step's arguments, by their shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * max(leaf.dtype.itemsize, least)
        for leaf in arguments
    )


def collectives(step: Step, fabric: Fabric) -> list[Collective]:
    """Collectives of a step under fully sharded data, tensor and expert parallelism."""
    found: list[Collective] = []
    sizes = dict(zip(fabric.axes, fabric.shape))

    def add(kind: str, size: float, axes: tuple[str, ...], count: float, purpose: str) -> None:
        if math.prod(sizes[axis] for axis in axes) > 1:
            route = fabric.along(axes)
            found.append(
                Collective(kind=kind, bytes=size, route=route, count=count, purpose=purpose)
            )

    for weight in step.weights.values():
        _exchange_weight(step, weight, sizes, add)
        if weight.is_kernel:
            _exchange_activations(step, weight, sizes, add)
        elif weight.is_table and "tensor" in weight.cuts[weight.axes.index("vocab")]:
            stream = _local_tokens(step, sizes) * step.width * COMPUTE_BYTES
            add("all-reduce", stream, ("tensor",), float(step.accumulate), "activations")
    return found


def _exchange_weight(step: Step, weight: PlannedWeight, sizes: dict[str, int], add: Add) -> None:
    """A weight gathered for each pass, and its gradient scattered or summed."""
    times, kept = float(weight.layers * step.accumulate), weight.kept_ways(sizes)
    used = {axis for part in weight.cuts for axis in part}
    own = set(weight.cuts[weight.axes.index("experts")]) if weight.of_experts else set()
    spread = [axis for axis in (*BATCH_AXES, "context") if axis not in own]
    gathered = tuple(axis for axis in spread if axis in used)
    size = weight.array.size / weight.layers / kept * COMPUTE_BYTES
    add("all-gather", size, gathered, 2 * times, "weights")
    if not weight.trained:
        return
    add("reduce-scatter", size, gathered, times, "gradients")
    shards = math.prod(sizes[axis] for axis in gathered)
    replicas = tuple(axis for axis in spread if axis not in used)
    add("all-reduce", size / shards, replicas, times, "gradients")


def _exchange_activations(
    step: Step, weight: PlannedWeight, sizes: dict[str, int], add: Add
) -> None:
    """Collectives that a matmul with a sharded kernel needs."""
    times, tokens = float(weight.layers * step.accumulate), _local_tokens(step, sizes)
    summed, made = weight.axes[-2:]
    passes = 3 if step.remat == "full" else 2
    width = tokens * weight.array.shape[-1] * COMPUTE_BYTES
    if "tensor" in weight.cuts[-2]:
        add("all-reduce", width, ("tensor",), passes * times, "activations")
    if made == "kv_heads" and summed is not None:
        size = width * sizes["context"] / weight.kept_ways(sizes)
        add("all-gather", size, ("context",), 2 * times, "keys and values")
        add("reduce-scatter", size, ("context",), times, "keys and values")
    if weight.of_experts and made == "embed":  # tokens to their experts and sums back, each pass
        across = weight.cuts[weight.axes.index("experts")]
        size = width * math.prod(sizes[axis] for axis in across)
        add("all-gather", size, across, passes * times, TOKENS)
        add("reduce-scatter", size, across, passes * times, TOKENS)


def memory(step: Step, fabric: Fabric) -> dict[str, float]:
    """Bytes per device by kind; ``peak_estimate_bytes`` is the larger of the peaks in the loss and
    in the backward pass of a layer."""
    sizes = dict(zip(fabric.axes, fabric.shape))
    arguments = argument_bytes(step.arguments)
    gradients = argument_bytes(step.trained, SUM_BYTES)
    weights = list(step.weights.values())
    stacked = [weight for weight in weights if "layers" in weight.axes and weight.is_kernel]
    layer_weights = COMPUTE_BYTES * sum(
        weight.array.size / weight.layers / weight.kept_ways(sizes) for weight in stacked
    )
    tables = [w.array.size / sizes["tensor"] for w in weights if w.array.ndim == 2 and w.is_table]
    head = max(tables, default=0.0)
    tokens = _local_tokens(step, sizes)
    widths = sum(
        weight.array.shape[-1] / (sizes["tensor"] if "tensor" in weight.cuts[-1] else 1)
        for weight in stacked
        if not weight.of_experts
    )
    kept = _kept_for_backward(step, sizes)
    shards = sizes["context"] * _batch(sizes)
    jaxpr, ways = step.jaxpr.jaxpr, float(shards * sizes["tensor"])
    # scores, where they are written; and what experts do with the tokens that they are given
    scores = living.peak_bytes(jaxpr, "attend", ways, matmuls_only=True)
    experts = living.peak_bytes(jaxpr, "experts", ways)
    # a layer's matmuls and their gradients, and its norms and residuals in float32
    layer = tokens * (2 * COMPUTE_BYTES * widths + 4 * 4 * step.width) + max(scores, experts)
    logits = _logits_chunk(step) / sizes["tensor"] / shards
    # the head gathered, its gradient so far and a chunk's in float32; logits and their gradient
    loss = head * (8 + COMPUTE_BYTES) + 2 * logits + tokens * step.width * COMPUTE_BYTES
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


def _kept_for_backward(step: Step, sizes: dict[str, int]) -> float:
    """Bytes that scans stack up per device and that are no gradients: what their backward passes
    need. Wide activations are cut over ``tensor``, the residual stream is not."""
    gradients = {(leaf.shape, leaf.size) for leaf in step.trained if leaf.ndim > 1}
    gradients |= {((s[0], 1, *s[1:]), size) for s, size in gradients}
    cut_last = [w for w in step.weights.values() if w.array.ndim and "tensor" in w.cuts[-1]]
    wide = {weight.array.shape[-1] for weight in cut_last} - {step.width}
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


def _scans(jaxpr: Jaxpr) -> Iterator[list[Equation]]:
    """The scans of each level of a program that follow one another."""
    found: list[Equation] = []
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "pallas_call":
            continue
        if name == "scan":
            found.append(equation)
            yield from _scans(equation.params["jaxpr"].jaxpr)
        else:
            body = called(equation)
            if body is not None:
                inner = list(_scans(body))
                found += inner.pop() if inner else []
                yield from inner
    yield found


def _logits_chunk(step: Step) -> float:
    """Bytes of the float32 logits that exist at once, over all devices."""
    rows = step.vocabulary

    def largest(jaxpr: Any) -> float:
        most = 0.0
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            if name == "dot_general" and equation.outvars[0].aval.shape[-1:] in {
                (v,) for v in rows
            }:
                most = max(most, float(equation.outvars[0].aval.size) * 4)
            elif name != "pallas_call":
                inner = called(equation)
                most = max(most, largest(inner)) if inner is not None else most
        return most

    return largest(step.jaxpr.jaxpr)
