"""A decoder used as an encoder of texts: its final states instead of its logits."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ziggurat.mesh import Layout
from ziggurat.models.language_model import LanguageModel, ModelConfig, Params
from ziggurat.nn.attention_context import Bidirectional, Causal
from ziggurat.nn.precision import Precision


@dataclasses.dataclass(frozen=True)
class DecoderEncoder:
    """A language model that embeds texts, such as Qwen3-Embedding; it has what
    :class:`~ziggurat.models.encoder_model.EncoderModel` has of an encoder of texts.

    Args:
        language: the model; its output matrix is not used.
        bidirectional: tokens see those after them too (gte-Qwen2), as ``is_causal=false`` says.
    """

    language: LanguageModel
    bidirectional: bool = False

    labels = 0
    """Labels that a head of whole texts scores: there is none."""

    @property
    def config(self) -> ModelConfig:
        """The family's config."""
        return self.language.config

    @property
    def precision(self) -> Precision:
        """Parameter and compute types."""
        return self.language.precision

    @property
    def abstract(self) -> Params:
        """Shapes and types of the parameters."""
        return self.language.abstract

    @property
    def width(self) -> int:
        """Length of a state."""
        return self.language.decoder.hidden_width

    @property
    def n_layers(self) -> int:
        return self.language.decoder.n_layers

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self.language.decoder.vocab_size

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return self.language.parameter_count

    def shardings(self, layout: Layout) -> Params:
        """Where each parameter lives; see :meth:`LanguageModel.shardings`."""
        return self.language.shardings(layout)

    def hidden(
        self, params: Params, inputs: Array, mask: Int[Array, "b t"] | None = None, **details: Any
    ) -> Float[Array, "b t d"]:
        """Final hidden states.

        Args:
            params: the parameters.
            inputs: token ids ``[b, t]``, padded on the right.
            mask: 1 for a token, 0 for padding; ``None``: no padding.
            details: none; a decoder takes nothing else.
        """
        assert not any(value is not None for value in details.values()), details
        positions = jnp.broadcast_to(jnp.arange(inputs.shape[1])[None], inputs.shape)
        # padding on the right is after every token, so that causal attention never sees it
        context = Bidirectional(mask) if self.bidirectional else Causal()
        return self.language.hidden(params, inputs, positions, context)[0]
