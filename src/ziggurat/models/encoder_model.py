"""An encoder as pure functions over a nested dict of parameters.

>>> import jax, jax.numpy as jnp
>>> from ziggurat.models import BertConfig
>>> config = BertConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=2)
>>> model = EncoderModel.build(config)
>>> params = model.init(jax.random.key(0))
>>> model.hidden(params, jnp.array([[1, 2, 0]]), jnp.array([[1, 1, 0]])).shape
(1, 3, 16)
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from ziggurat.mesh import Layout
from ziggurat.models.language_model import Params, traced
from ziggurat.nn.encoder import Encoder, EncoderConfig
from ziggurat.nn.precision import Precision


@runtime_checkable
class EncoderFamilyConfig(Protocol):
    """Interface of an encoder family's config node."""

    @property
    def kind(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_sequence_length(self) -> int: ...

    def encoder(self) -> EncoderConfig:
        """The encoder this config stands for."""
        ...


@dataclasses.dataclass(frozen=True)
class EncoderModel:
    """A family's config with its traced structure; holds no arrays."""

    config: EncoderFamilyConfig
    encoder: EncoderConfig
    precision: Precision
    graph: Any
    """NNX graph definition; with parameters it makes an :class:`Encoder`."""
    abstract: Params
    """Shapes and types of the parameters."""
    axes: Params
    """Logical axis names of the parameters, tuples as leaves."""

    @classmethod
    def build(
        cls, config: EncoderFamilyConfig, precision: Precision | None = None
    ) -> "EncoderModel":
        """Trace the model's structure; allocates nothing.

        Args:
            config: a family's config node, e.g. ``BertConfig``.
            precision: parameter and compute types (default float32 for both).
        """
        precision, encoder = precision or Precision(), config.encoder()

        def make(key: Key[Array, ""]) -> Encoder:
            return Encoder(encoder, precision=precision, rngs=nnx.Rngs(params=key))

        return cls(config, encoder, precision, *traced(make))

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters."""

        def make(key: Key[Array, ""]) -> Params:
            encoder = Encoder(self.encoder, precision=self.precision, rngs=nnx.Rngs(params=key))
            return nnx.to_pure_dict(nnx.split(encoder)[1])

        return jax.jit(make)(key)

    def shardings(self, layout: Layout) -> Params:
        """Where each parameter lives.

        Raises:
            ShardingError: heads, vocabulary or another dimension does not divide over the mesh.
        """
        layout.require_divides("the heads", self.encoder.block.mixer.divided)
        return layout.tree(self.axes, self.abstract)

    def hidden(
        self,
        params: Params,
        tokens: Int[Array, "b t"],
        mask: Int[Array, "b t"],
        token_types: Int[Array, "b t"] | None = None,
    ) -> Float[Array, "b t d"]:
        """Hidden states of the last block; ``mask`` is 0 at padding."""
        return nnx.merge(self.graph, params)(tokens, mask, token_types)

    def pooled(self, params: Params, hidden: Float[Array, "b t d"]) -> Float[Array, "b d"]:
        """The pooler's vector of each row; for encoders that have one."""
        return nnx.merge(self.graph, params).pool(hidden)

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract))
