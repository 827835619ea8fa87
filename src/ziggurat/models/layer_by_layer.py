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

from ziggurat.core.pytrees import leaf_name, named_leaves
from ziggurat.kernels.linear import Observations, is_weight_node
from ziggurat.models.folds import Fold, candidates
from ziggurat.models.language_model import LanguageModel, Params
from ziggurat.models.quantized import summed_axes
from ziggurat.nn.attention_context import Causal
from ziggurat.nn.stacking import stack_name


@dataclasses.dataclass(frozen=True)
class Moments:
    """Statistics of a matrix's inputs ``x``; of experts each its own."""

    gram: Float[Array, "*e d d"] | Float[np.ndarray, "*e d d"]
    """Sum of ``x x^T``."""
    magnitude: Float[Array, "*e d"] | Float[np.ndarray, "*e d"]
    """Sum of ``|x|``."""
    largest: Float[Array, "*e d"] | Float[np.ndarray, "*e d"]
    """Maximum of ``|x|``; 0 without inputs."""
    tokens: Int[np.ndarray, "*e"]
    """Number of inputs."""

    def __add__(self, other: "Moments") -> "Moments":
        """Statistics of both sets of inputs."""
        largest = np.maximum(np.asarray(self.largest), np.asarray(other.largest))
        return Moments(
            self.gram + other.gram,
            self.magnitude + other.magnitude,
            largest,
            np.asarray(self.tokens + other.tokens),
        )

    def __getitem__(self, expert: int) -> "Moments":
        """Statistics of one expert's inputs."""
        return Moments(
            self.gram[expert],
            self.magnitude[expert],
            self.largest[expert],
            np.asarray(self.tokens[expert]),
        )

    def divided(self, factors: Float[np.ndarray, " d"]) -> "Moments":
        """Statistics of the inputs divided by ``factors``."""
        return Moments(
            self.gram / np.outer(factors, factors),
            self.magnitude / factors,
            self.largest / factors,
            self.tokens,
        )


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
        self._inputs: list[np.ndarray | None] = []  # of a row, what each layer reads for itself
        angles: list[Any] = []
        for row in rows:
            begun = begin(params, jnp.asarray(row[None]))
            angles = begun.rotations
            self._rows.append(np.asarray(begun.x))
            own = begun.by_layer
            self._inputs.append(None if own is None else np.asarray(own))
        self._read: dict[int, list[Any]] = {
            layer.source: [] for layer in model.decoder.layers if layer.source is not None
        }  # by layer, for each row, the keys and values that later layers attend to
        self._steps = [
            decoder.layer_step(layer, self._positions, angle, Causal())
            for layer, angle in zip(model.decoder.layers, angles)
        ]
        self._compiled: dict[Any, Any] = {}

    def moments(self, layer: int, names: Collection[str]) -> dict[str, Moments]:
        """Second moments of the inputs of a layer's matrices, by their names in the tree of
        parameters; those that multiply in no matmul are left out. Matrices of the same inputs share
        them."""
        sums: dict[str, Moments] = {}
        run, shared = self._observing(layer, frozenset(names))
        own = self._of_layer(layer)
        for number, row in enumerate(self._rows):
            seen = run(own, jnp.asarray(row), *self._beside(layer, number))
            for name, (found, sizes) in seen.items():
                if sizes is None:
                    gram, magnitude, largest = found
                    here = Moments(gram, magnitude, largest, np.asarray(row.shape[1]))
                else:
                    here = _by_expert(found[0], sizes)
                sums[name] = here if name not in sums else sums[name] + here
        return {name: sums[first] for name, first in shared.items()}

    def folds(self, layer: int) -> list[Fold]:
        """Places of a layer where factors of inputs fold away, each tried: with factors from 1/2 to
        2 the outputs of the first row stay the same."""
        kind = self._model.decoder.layers[layer]
        if ("folds", kind) in self._compiled:
            return self._compiled["folds", kind]
        prefix, own = self._stack(layer), self._of_layer(layer)
        named = {f"{prefix}.{name}": leaf for name, leaf in named_leaves(own).items()}
        kernels = [name for name in summed_axes(self._model) if name in named]
        run, shared = self._observing(layer, frozenset(kernels))
        row, beside = jnp.asarray(self._rows[0]), self._beside(layer, 0)
        run(own, row, *beside)
        groups: dict[str, list[str]] = {}
        for name, first in shared.items():
            groups.setdefault(first, []).append(name)
        found = candidates(kind.block, prefix, list(groups.values()), set(named))
        step = jax.jit(lambda own, x: self._steps[layer](own, x, *beside)[0])
        plain = np.asarray(step(own, row))
        size = np.abs(plain - self._rows[0]).max()
        kept = []
        for fold in found:
            changed = self._folded(fold, named)
            off = np.abs(np.asarray(step(self._with(layer, changed), row)) - plain).max()
            if off <= 1e-3 * size:
                kept.append(fold)
        self._compiled["folds", kind] = kept
        return kept

    def _folded(self, fold: Fold, named: Mapping[str, Array]) -> dict[str, Array]:
        """A layer's changed parameters with factors that any real difference shows."""
        inputs = named[fold.consumers[0]].shape[-2]
        made, factors = fold.applied(named, np.geomspace(0.5, 2, inputs, dtype=np.float32))
        for name in fold.consumers:
            made[name] = np.asarray(named[name]) * factors[:, None]
        return {name: jnp.asarray(leaf, named[name].dtype) for name, leaf in made.items()}

    def advance(self, layer: int, weights: Mapping[str, Any]) -> None:
        """Take every row through a layer, with these weights in place of the layer's own."""
        own = self._with(layer, weights)
        kind = (self._model.decoder.layers[layer], jax.tree.structure(own))
        if kind not in self._compiled:
            step = self._steps[layer]
            self._compiled[kind] = jax.jit(lambda own, x, *beside: step(own, x, *beside)[:2])
        run = self._compiled[kind]
        for number, row in enumerate(self._rows):
            x, state = run(own, jnp.asarray(row), *self._beside(layer, number))
            self._rows[number] = np.asarray(x)
            if layer in self._read:
                self._read[layer].append(jax.tree.map(np.asarray, state))

    def _beside(self, layer: int, row: int) -> tuple[Any, ...]:
        """Further arguments of a layer's step: its state, and what it reads for itself."""
        source, own = self._model.decoder.layers[layer].source, self._inputs[row]
        state = () if source is None else jax.tree.map(jnp.asarray, self._read[source][row])
        return (state,) if own is None else (state, jnp.asarray(own[layer]))

    def _with(self, layer: int, weights: Mapping[str, Any]) -> Params:
        """A layer's parameters, with these in place of its own."""
        prefix = self._stack(layer)

        def chosen(path: Any, leaf: Any) -> Any:
            return weights.get(f"{prefix}.{leaf_name(path)}", leaf)

        own = self._of_layer(layer)
        return jax.tree_util.tree_map_with_path(chosen, own, is_leaf=is_weight_node)

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
            def run(own: Params, x: Array, *beside: Any) -> Any:
                seen = Observations()

                def wrapped(path: Any, leaf: Any) -> Any:
                    name = f"{prefix}.{leaf_name(path)}"
                    return seen.observed(name, leaf) if name in names else leaf

                step(jax.tree_util.tree_map_with_path(wrapped, own), x, *beside)
                first: dict[int, str] = {}
                for name, (inputs, _) in seen.inputs.items():
                    shared[name] = first.setdefault(id(inputs), name)
                return {name: _summed(*seen.inputs[name]) for name in first.values()}

            self._compiled[kind] = (run, shared)
        return self._compiled[kind]


def _summed(x: Array, sizes: Array | None) -> tuple[tuple[Array, ...], Array | None]:
    flat = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    if sizes is not None:
        return (flat,), sizes
    size = jnp.abs(flat)
    gram = jnp.einsum("nd,ne->de", flat, flat, precision="highest")
    return (gram, size.sum(0), size.max(0)), None


def _by_expert(rows: Float[Array, "n d"], sizes: Int[Array, " e"]) -> Moments:
    """Statistics of each expert's rows, which lie one expert after another."""
    ends = np.cumsum(sizes)
    parts = np.split(np.asarray(rows), ends)[: len(ends)]
    return Moments(
        np.stack([part.T @ part for part in parts]),
        np.stack([np.abs(part).sum(0) for part in parts]),
        np.stack([np.abs(part).max(0, initial=0) for part in parts]),
        np.asarray(sizes),
    )
