"""The driver of a stack of layers: scans every run of layers over its stacked parameters.

The decoder, encoders, the decoder behind an encoder, vision towers and the diffusion transformer
say what one layer does; this says in which order, over which parameters and states, and what is
kept for the backward pass.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ziggurat.kernels.linear import is_product
from ziggurat.nn.stacking import Run, runs

Remat = Literal["none", "full", "dots"]


def _keep_products(primitive: Any, *arguments: Any, **attributes: Any) -> bool:
    dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    return is_product(primitive) or bool(dots(primitive, *arguments, **attributes))


REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": _keep_products,
}
"""Activations that a layer keeps for its backward pass, by policy.

``none``: all. ``full``: its input only. ``dots``: the results of weight matmuls; attention and
element-wise work are recomputed.
"""
LayerStep = Callable[..., tuple[Array, PyTree, PyTree]]
"""One layer as a pure function ``(parameters, x, state) -> (x, state, report)``; a report is
whatever else the layer gives, such as what its router counts, or ``None``. Where layers read inputs
of their own, these are a fourth argument."""


def rematerialised(step: LayerStep, remat: Remat) -> LayerStep:
    """A layer that keeps for its backward pass what a policy of :data:`REMAT_POLICIES` says."""
    if remat == "none":
        return step
    # inside a scan nothing can be shared with the forward pass, so let XLA merge freely
    return jax.checkpoint(step, policy=REMAT_POLICIES[remat], prevent_cse=False)


class ScannedLayers(NamedTuple):
    """Results of :func:`scan_layers`."""

    x: Array
    """The last layer's output."""
    runs: list[tuple[Run, list[tuple[PyTree, PyTree]]]]
    """Each run, with new state and report of every layer of its period, ``[repeats, ...]``."""

    def by_stack(self, part: int) -> list[PyTree]:
        """States (part 0) or reports (1) of each stack, ``[layers, ...]``."""
        found: dict[int, list[Any]] = {}
        for run, after in self.runs:
            for stack, leaves in run.by_stack([both[part] for both in after]).items():
                found.setdefault(stack, []).append(leaves)
        return [_concatenated(found[stack]) for stack in sorted(found)]

    def reports(self) -> dict[int, PyTree]:
        """Reports by number of the layer, of those that give one."""
        return {
            run.start + repeat * run.period + i: jax.tree.map(lambda leaf, r=repeat: leaf[r], one)
            for run, after in self.runs
            for i, (_, one) in enumerate(after)
            if one is not None
            for repeat in range(run.repeats)
        }


def scan_layers(
    layers: Sequence[Any],
    stacks: Sequence[PyTree],
    step: Callable[[int], LayerStep],
    x: Array,
    states: Sequence[PyTree] = (),
    behind: tuple[Callable[[Array, PyTree], Array], PyTree] | None = None,
    inputs: PyTree | None = None,
) -> ScannedLayers:
    """Take states of tokens through all layers, from the first to the last.

    Args:
        layers: what tells layers apart: equal ones are traced once, and those of one ``block``
            share a stack of parameters. Those with a ``source`` get the new state of the layer of
            that number, an earlier one, in place of a state of their own.
        stacks: parameters by stack, each ``[layers of the stack, ...]``.
        step: gives a layer's function from its number; asked for the first period of each run.
        x: the first layer's input.
        states: what layers keep of earlier tokens, as ``stacks``; default: nothing.
        behind: function of a layer's output and of its own part of a tree ``[k, ...]``, for the
            first ``k`` layers: what happens behind each of them.
        inputs: tree ``[layers, ...]`` of what each layer reads for itself.

    >>> double = lambda number: lambda weight, x, state: (x * weight, state, x)
    >>> found = scan_layers("LLL", [jnp.array([2.0, 3.0, 5.0])], double, jnp.float32(1))
    >>> float(found.x), found.by_stack(1)[0].tolist()
    (30.0, [1.0, 2.0, 6.0])
    """
    add, added = behind if behind is not None else (None, None)
    border = jax.tree.leaves(added)[0].shape[0] if add is not None else 0
    states = states or [()] * len(stacks)
    sources = [getattr(layer, "source", None) for layer in layers]
    found: dict[int, PyTree] = {}  # states of the layers that are sources
    outputs = []
    for run in runs(layers, border):
        numbers = range(run.start, run.start + run.period)
        steps = [step(number) for number in numbers]
        given = [None if (at := sources[number]) is None else found[at] for number in numbers]
        body = _period(run, steps, given, _sources_in(run, sources), add)
        of_run = (_of_run(added, run) if run.start < border else None, _of_run(inputs, run))
        x, (after, read) = jax.lax.scan(body, x, (run.fold(stacks), run.fold(states), *of_run))
        for number, state in read.items():
            found[number] = _at(state, (number - run.start) // run.period)
        outputs.append((run, after))
    return ScannedLayers(x, outputs)


def _period(
    run: Run,
    steps: Sequence[LayerStep],
    given: Sequence[PyTree],
    needed: dict[int, list[int]],
    add: Callable[[Array, PyTree], Array] | None,
) -> Callable[[Array, Any], tuple[Array, Any]]:
    """The layers of a run's period as the body of a scan.

    Args:
        run: the run.
        steps: functions of the layers.
        given: states of earlier layers, for those that have none of their own.
        needed: see :func:`_sources_in`.
        add: what happens behind each layer, if anything.
    """

    def body(x: Array, folded: Any) -> tuple[Array, Any]:
        stacks, states, added, inputs = folded
        after, read = [], {}
        parts = zip(steps, run.unfold(stacks), run.unfold(states), given)
        for i, (one, params, held, other) in enumerate(parts):
            own = () if inputs is None else (_at(inputs, i),)
            x, state, report = one(params, x, held if other is None else other, *own)
            if add is not None and added is not None:
                x = add(x, _at(added, i))
            read |= dict.fromkeys(needed.get(i, ()), state)
            # a context without states gives some all the same where a later layer reads them
            after.append((state if jax.tree.leaves(held) else held, report))
        return x, (after, read)

    return body


def _sources_in(run: Run, sources: Sequence[int | None]) -> dict[int, list[int]]:
    """Numbers of a run's layers whose states are read by others, by place in the period."""
    found: dict[int, list[int]] = {}
    for number in sorted({at for at in sources if at is not None}):
        if run.start <= number < run.start + run.repeats * run.period:
            found.setdefault((number - run.start) % run.period, []).append(number)
    return found


def _at(tree: PyTree, index: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _of_run(tree: PyTree, run: Run) -> PyTree:
    """Parts of a tree that belong to the layers of a run, by repeat and layer of the period."""

    def part(leaf: Array) -> Array:
        own = leaf[run.start : run.start + run.repeats * run.period]
        return own.reshape(run.repeats, run.period, *leaf.shape[1:])

    return jax.tree.map(part, tree)


def _concatenated(parts: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
