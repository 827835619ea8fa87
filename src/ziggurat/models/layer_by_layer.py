"""A language model run one layer at a time over a text, and the inputs of its matmuls summed up.

Memory holds the activations of one layer for all rows, and the second moments of one layer's
inputs, whatever the model's depth. Any family runs: a layer is the decoder's own, and its matrices
are wrapped so that they show their inputs (:class:`ziggurat.kernels.linear.Observations`).
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.core.pytrees import leaf_name
from ziggurat.kernels.linear import Observations, is_weight_node
from ziggurat.models.language_model import LanguageModel, Params
from ziggurat.nn.attention_context import Causal
from ziggurat.nn.stacking import stack_name


@dataclasses.dataclass(frozen=True)
class Moments:
    """Second moments of a matrix's inputs."""

    gram: Float[Array, "*e d d"] | Float[np.ndarray, "*e d d"]
    """Sum of ``x x^T`` over the inputs ``x``; of experts each its own."""
    tokens: Int[np.ndarray, "*e"]
    """Number of inputs."""


class LayerByLayer:
    """Activations of some rows of tokens on their way through a model.

    >>> from ziggurat.models import LlamaConfig
    >>> config = LlamaConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=2)
    >>> model = LanguageModel.build(config)
    >>> params = model.init(jax.random.key(0))
    >>> run = LayerByLayer(model, params, np.arange(8).reshape(2, 4))
    >>> found = run.moments(0, ["blocks.mlp.down.kernel"])["blocks.mlp.down.kernel"]
    >>> found.gram.shape, int(found.tokens)
    ((64, 64), 8)

    Args:
        model: the model, built without remat.
        params: its parameters; float32 keeps sums exact.
        rows: token ids, run row by row.
    """

    def __init__(self, model: LanguageModel, params: Params, rows: Int[np.ndarray, "n t"]):
        self._model, self._params = model, params
        decoder = nnx.merge(model.graph, params)
        self._positions = jnp.arange(rows.shape[1])[None]

        @jax.jit
        def begin(params: Params, tokens: Array) -> Any:
            whole = nnx.merge(model.graph, params)
            return whole.begin(tokens, self._positions, Causal())

        self._rows: list[np.ndarray] = []
        angles: list[Any] = []
        for row in rows:
            x, angles = begin(params, jnp.asarray(row[None]))
            self._rows.append(np.asarray(x))
        self._steps = [
            decoder.layer_step(layer, self._positions, angle, Causal())
            for layer, angle in zip(model.decoder.layers, angles)
        ]
        self._compiled: dict[Any, Any] = {}

    def moments(self, layer: int, names: Collection[str]) -> dict[str, Moments]:
        """Second moments of the inputs of a layer's matrices, by their names in the tree of
        parameters; those that multiply in no matmul are left out. Matrices of the same inputs share
        them."""
        sums: dict[str, Any] = {}
        counts: dict[str, Any] = {}
        run, shared = self._observing(layer, frozenset(names))
        own = self._of_layer(layer)
        for row in self._rows:
            for name, (found, sizes) in run(own, jnp.asarray(row)).items():
                gram, count = (found, row.shape[1]) if sizes is None else _by_expert(found, sizes)
                sums[name] = gram if name not in sums else sums[name] + gram
                counts[name] = counts.get(name, 0) + count
        made = {name: Moments(sums[name], np.asarray(counts[name])) for name in sums}
        return {name: made[first] for name, first in shared.items()}

    def advance(self, layer: int, weights: Mapping[str, Any]) -> None:
        """Take every row through a layer, with these weights in place of the layer's own."""
        own = self._of_layer(layer)
        prefix = self._stack(layer)

        def chosen(path: Any, leaf: Any) -> Any:
            return weights.get(f"{prefix}.{leaf_name(path)}", leaf)

        own = jax.tree_util.tree_map_with_path(chosen, own, is_leaf=is_weight_node)
        kind = (self._model.decoder.layers[layer], jax.tree.structure(own))
        if kind not in self._compiled:
            step = self._steps[layer]
            self._compiled[kind] = jax.jit(lambda own, x: step(own, x, ())[0])
        run = self._compiled[kind]
        self._rows = [np.asarray(run(own, jnp.asarray(row))) for row in self._rows]

    def _stack(self, layer: int) -> str:
        return stack_name(self._model.decoder.places[layer].stack)

    def _of_layer(self, layer: int) -> Params:
        index = self._model.decoder.places[layer].index
        return jax.tree.map(lambda leaf: leaf[index], self._params[self._stack(layer)])

    def _observing(
        self, layer: int, names: frozenset[str]
    ) -> tuple[Callable[..., Any], dict[str, str]]:
        """A compiled layer that gives its inputs' second moments (of experts the inputs
        themselves), and under which name each matrix finds its own."""
        kind = (self._model.decoder.layers[layer], names)
        if kind not in self._compiled:
            step, prefix, shared = self._steps[layer], self._stack(layer), {}

            @jax.jit
            def run(own: Params, x: Array) -> Any:
                seen = Observations()

                def wrapped(path: Any, leaf: Any) -> Any:
                    name = f"{prefix}.{leaf_name(path)}"
                    return seen.observed(name, leaf) if name in names else leaf

                step(jax.tree_util.tree_map_with_path(wrapped, own), x, ())
                first: dict[int, str] = {}
                for name, (inputs, _) in seen.inputs.items():
                    shared[name] = first.setdefault(id(inputs), name)
                return {name: _summed(*seen.inputs[name]) for name in first.values()}

            self._compiled[kind] = (run, shared)
        return self._compiled[kind]


def _summed(x: Array, sizes: Array | None) -> tuple[Array, Array | None]:
    flat = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    if sizes is not None:
        return flat, sizes
    return jnp.einsum("nd,ne->de", flat, flat, precision="highest"), None


def _by_expert(
    rows: Float[Array, "n d"], sizes: Int[Array, " e"]
) -> tuple[Float[np.ndarray, "e d d"], Int[np.ndarray, " e"]]:
    """Sums of ``x x^T`` over each expert's rows, which lie one expert after another."""
    ends = np.cumsum(sizes)
    parts = np.split(np.asarray(rows), ends)[: len(ends)]
    return np.stack([part.T @ part for part in parts]), np.asarray(sizes)
