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

from ziggurat.core.errors import ModelError
from ziggurat.models.traced_model import Params, TracedModel
from ziggurat.nn.encoder import Encoder, EncoderConfig
from ziggurat.nn.encoder_inputs import TokenInputConfig
from ziggurat.nn.precision import Precision


@runtime_checkable
class EncoderFamilyConfig(Protocol):
    """Interface of an encoder family's config node."""

    @property
    def kind(self) -> str: ...

    @property
    def n_layers(self) -> int: ...

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
        return [block.mixer.divided for block in self.encoder.stacks]

    @property
    def width(self) -> int:
        """Length of a state."""
        return self.encoder.d_model

    @property
    def n_layers(self) -> int:
        return self.encoder.n_layers

    @property
    def reads_texts(self) -> bool:
        """Whether its input is token ids."""
        return isinstance(self.encoder.input, TokenInputConfig)

    @property
    def vocab_size(self) -> int:
        """Token ids are below this.

        Raises:
            ModelError: it is an encoder of something else than texts.
        """
        return self._text_input.vocab_size

    @property
    def token_types(self) -> int:
        """Kinds of token, which tell a first text from a second; 0: it takes none.

        Raises:
            ModelError: it is an encoder of something else than texts.
        """
        return self._text_input.token_types

    @property
    def max_length(self) -> int | None:
        """Longest sequence in tokens that there are learned positions for; ``None``: any.

        Raises:
            ModelError: it is an encoder of something else than texts.
        """
        return self._text_input.max_length

    @property
    def labels(self) -> int:
        """Labels that a head of whole texts or images scores; 0 where there is no such head."""
        head = self.encoder.head
        return head.outputs or 0 if head is not None and head.reads == "pooled" else 0

    @property
    def _text_input(self) -> TokenInputConfig:
        found = self.encoder.input
        if isinstance(found, TokenInputConfig):
            return found
        raise ModelError(
            f"encoder ({self.config.kind})", found="images as its input", expected="token ids"
        )

    def hidden(
        self,
        params: Params,
        inputs: Array,
        mask: Int[Array, "b t"] | None = None,
        **details: Array | None,
    ) -> Float[Array, "b t d"]:
        """Final hidden states.

        Args:
            params: the parameters.
            inputs: token ids ``[b, t]``, padded on the right, or images ``[b, c, h, w]``.
            mask: 1 for a token, 0 for padding; ``None``: no padding.
            details: ``token_types`` of tokens, or ``hidden_patches`` of images.
        """
        return nnx.merge(self.graph, params)(inputs, mask, **details)

    def pooled(
        self,
        params: Params,
        hidden: Float[Array, "b t d"],
        mask: Int[Array, "b t"] | None,
        inputs: Array,
    ) -> Float[Array, "b e"]:
        """The pooler's vector of each row; for encoders that have one."""
        return nnx.merge(self.graph, params).pool(hidden, mask, inputs)

    def logits(
        self,
        params: Params,
        inputs: Array,
        mask: Int[Array, "b t"] | None = None,
        **details: Array | None,
    ) -> Float[Array, "b ... n"]:
        """The head's logits, of rows or of tokens, in float32; for encoders that have a head."""
        encoder = nnx.merge(self.graph, params)
        return encoder.logits(encoder(inputs, mask, **details), mask, inputs)
