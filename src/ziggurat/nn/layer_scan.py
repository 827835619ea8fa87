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
LayerStep = Callable[[PyTree, Array, PyTree], tuple[Array, PyTree, PyTree]]
"""One layer as a pure function ``(parameters, x, state) -> (x, state, report)``; a report is
whatever else the layer gives, such as what its router counts, or ``None``."""


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
) -> ScannedLayers:
    """Take states of tokens through all layers, from the first to the last.

    Args:
        layers: what tells layers apart: equal ones are traced once, and those of one ``block``
            share a stack of parameters.
        stacks: parameters by stack, each ``[layers of the stack, ...]``.
        step: gives a layer's function from its number; asked for the first period of each run.
        x: the first layer's input.
        states: what layers keep of earlier tokens, as ``stacks``; default: nothing.
        behind: function of a layer's output and of its own part of a tree ``[k, ...]``, for the
            first ``k`` layers: what happens behind each of them.

    >>> double = lambda number: lambda weight, x, state: (x * weight, state, x)
    >>> found = scan_layers("LLL", [jnp.array([2.0, 3.0, 5.0])], double, jnp.float32(1))
    >>> float(found.x), found.by_stack(1)[0].tolist()
    (30.0, [1.0, 2.0, 6.0])
    """
    add, added = behind if behind is not None else (None, None)
    border = jax.tree.leaves(added)[0].shape[0] if add is not None else 0
    states = states or [()] * len(stacks)
    outputs = []
    for run in runs(layers, border):
        steps = [step(number) for number in range(run.start, run.start + run.period)]

        def body(x: Array, folded: Any, run: Run = run, steps: Any = steps) -> tuple[Array, Any]:
            *folded, own = folded
            after = []
            parts = (run.unfold(part) for part in folded)
            for i, (one, params, state) in enumerate(zip(steps, *parts)):
                x, state, report = one(params, x, state)
                if add is not None and own is not None:
                    x = add(x, jax.tree.map(lambda leaf, i=i: leaf[i], own))
                after.append((state, report))
            return x, after

        own = _of_run(added, run) if run.start < border else None
        x, after = jax.lax.scan(body, x, (run.fold(stacks), run.fold(states), own))
        outputs.append((run, after))
    return ScannedLayers(x, outputs)


def _of_run(tree: PyTree, run: Run) -> PyTree:
    """Parts of a tree that belong to the layers of a run, by repeat and layer of the period."""

    def part(leaf: Array) -> Array:
        own = leaf[run.start : run.start + run.repeats * run.period]
        return own.reshape(run.repeats, run.period, *leaf.shape[1:])

    return jax.tree.map(part, tree)


def _concatenated(parts: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
