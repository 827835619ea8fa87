"""An encoder-decoder of speech as pure functions over a nested dict of parameters.

>>> import jax, jax.numpy as jnp
>>> from ziggurat.models import WhisperConfig
>>> sizes = dict(vocab_size=32, d_model=16, n_encoder_layers=1, n_decoder_layers=1)
>>> config = WhisperConfig(**sizes, n_encoder_heads=2, n_decoder_heads=2, audio_positions=4)
>>> model = SpeechModel.build(config)
>>> params = model.init(jax.random.key(0))
>>> model.logits(params, jnp.zeros((1, 80, 8)), jnp.array([[1, 2, 3]])).shape
(1, 3, 32)
"""

import dataclasses
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.models.traced_model import Params, TracedModel
from ziggurat.nn.attention_context import AttentionContext, Cached, Causal
from ziggurat.nn.audio_input import AudioInputConfig
from ziggurat.nn.encoder_decoder import EncoderDecoder, EncoderDecoderConfig, Memory
from ziggurat.nn.precision import Precision

C = TypeVar("C", bound=AttentionContext)


@runtime_checkable
class SpeechFamilyConfig(Protocol):
    """Interface of the config node of a family that turns speech into text."""

    @property
    def kind(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_sequence_length(self) -> int:
        """Longest sequence in tokens."""
        ...

    def encoder_decoder(self) -> EncoderDecoderConfig:
        """The encoder and decoder this config stands for."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechModel(TracedModel):
    """A family's config with its traced encoder and decoder; holds no arrays."""

    config: SpeechFamilyConfig
    parts: EncoderDecoderConfig
    audio: AudioInputConfig
    """Input of the encoder."""

    @classmethod
    def build(cls, config: SpeechFamilyConfig, precision: Precision | None = None) -> "SpeechModel":
        """Trace the model's structure; allocates nothing.

        Args:
            config: a family's config node, e.g. ``WhisperConfig``.
            precision: parameter and compute types (default float32 for both).
        """
        precision, parts = precision or Precision(), config.encoder_decoder()
        audio = parts.encoder.input
        assert isinstance(audio, AudioInputConfig)
        make = partial(EncoderDecoder, parts, precision=precision)
        return cls.trace(make, precision, config=config, parts=parts, audio=audio)

    @property
    def heads(self) -> list[dict[str, int]]:
        encoders = [block.mixer.divided for block in self.parts.encoder.stacks]
        return [*encoders, self.parts.attention.divided]

    def memory(self, params: Params, spectrogram: Float[Array, "b m f"]) -> Memory:
        """Keys and values of the encoder's states over a spectrogram, for the decoder."""
        model = nnx.merge(self.graph, params)
        return model.memory(model.encode(spectrogram))

    def decode(
        self,
        params: Params,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t"],
        context: C,
        memory: Memory,
    ) -> tuple[Float[Array, "b t d"], C]:
        """Final states of tokens, and the context after them; see :meth:`EncoderDecoder.decode`."""
        return nnx.merge(self.graph, params).decode(tokens, positions, context, memory)

    def project(self, params: Params, states: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Final states to logits in float32."""
        return nnx.merge(self.graph, params).logits(states)

    def logits(
        self, params: Params, spectrogram: Float[Array, "b m f"], tokens: Int[Array, "b t"]
    ) -> Float[Array, "b t v"]:
        """Logits of each next token in float32, all tokens at once."""
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        memory = self.memory(params, spectrogram)
        states, _ = self.decode(params, tokens, positions, Causal(), memory)
        return self.project(params, states)

    def cache(self, batch: int) -> Cached:
        """An empty cache of the decoder's keys and values, for sequences of any length it has."""
        stacks = [(self.parts.attention.state, self.parts.n_layers)]
        return Cached.empty(stacks, batch, self.parts.positions, self.precision.compute_dtype)
