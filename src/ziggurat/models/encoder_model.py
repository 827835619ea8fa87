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
from functools import partial
from typing import Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.models.traced_model import Params, TracedModel
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderModel(TracedModel):
    """A family's config with its traced encoder; holds no arrays."""

    config: EncoderFamilyConfig
    encoder: EncoderConfig

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

        make = partial(Encoder, encoder, precision=precision)
        return cls.trace(make, precision, config=config, encoder=encoder)

    @property
    def heads(self) -> list[dict[str, int]]:
        return [self.encoder.block.mixer.divided]

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
