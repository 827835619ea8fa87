"""Whisper: an encoder of log-mel spectrograms and a decoder that writes what is said."""

from typing import Literal

from ziggurat.core import config
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.audio_input import AudioInputConfig
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.encoder import EncoderConfig
from ziggurat.nn.encoder_decoder import EncoderDecoderConfig
from ziggurat.nn.mlp import Activation, PlainMlpConfig
from ziggurat.nn.norm import NormConfig


@config.node
class WhisperConfig:
    """An encoder and a decoder of equal width, with norms before each part and no bias on keys.

    Paper: Radford et al. 2022, https://arxiv.org/abs/2212.04356; Distil-Whisper: Gandhi et al.
    2023, https://arxiv.org/abs/2311.00430.
    """

    kind: Literal["whisper"] = "whisper"
    vocab_size: int
    """Vocabulary entries."""
    d_model: int
    """Model width."""
    n_encoder_layers: int
    """Blocks of the encoder."""
    n_decoder_layers: int
    """Blocks of the decoder."""
    n_encoder_heads: int
    """Heads of the encoder."""
    n_decoder_heads: int
    """Heads of the decoder."""
    encoder_d_ff: int | None = None
    """Feed-forward width of the encoder; default ``4 d_model``."""
    decoder_d_ff: int | None = None
    """Feed-forward width of the decoder; default ``4 d_model``."""
    mel_bins: int = 80
    """Mel bands of the spectrogram."""
    audio_positions: int = 1500
    """States of the encoder; the spectrogram has twice as many frames."""
    max_sequence_length: int = 448
    """Longest sequence of the decoder in tokens."""
    activation: Activation = "gelu"
    """Function between the two matmuls of the feed-forward blocks."""
    init_std: float = 0.02
    """Standard deviation of initial weights."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, int):
                config.require(value >= 1, name, value, "a number >= 1")
        for name in ("n_encoder_heads", "n_decoder_heads"):
            heads = getattr(self, name)
            divides = self.d_model % heads == 0
            config.require(divides, "d_model", self.d_model, f"a multiple of {heads} heads")
        config.require(self.d_model % 2 == 0, "d_model", self.d_model, "an even number")

    @property
    def norm(self) -> NormConfig:
        """Every norm."""
        return NormConfig(kind="layer", eps=1e-5)

    def feed_forward(self, part: Literal["encoder", "decoder"]) -> int:
        """Feed-forward width of a part."""
        return getattr(self, f"{part}_d_ff") or 4 * self.d_model

    def _attention(self, heads: int) -> GroupedAttentionConfig:
        return GroupedAttentionConfig(
            heads=heads,
            kv_heads=heads,
            head_dim=self.d_model // heads,
            bias=True,
            key_bias=False,
            out_bias=True,
        )

    def encoder_decoder(self) -> EncoderDecoderConfig:
        """The encoder and decoder this config stands for."""
        hidden, act = self.feed_forward("encoder"), self.activation
        block = BlockConfig(
            mixer=self._attention(self.n_encoder_heads),
            mlp=PlainMlpConfig(hidden=hidden, activation=act),
            norm=self.norm,
        )
        rule = AttentionRule((self.d_model // self.n_encoder_heads) ** -0.5)
        encoder = EncoderConfig(
            d_model=self.d_model,
            input=AudioInputConfig(mel_bins=self.mel_bins, positions=self.audio_positions),
            layers=(LayerConfig(block=block, rule=rule, rope=None),) * self.n_encoder_layers,
            final_norm=self.norm,
            init_std=self.init_std,
        )
        return EncoderDecoderConfig(
            encoder=encoder,
            vocab_size=self.vocab_size,
            positions=self.max_sequence_length,
            n_layers=self.n_decoder_layers,
            attention=self._attention(self.n_decoder_heads),
            mlp=PlainMlpConfig(hidden=self.feed_forward("decoder"), activation=act),
            norm=self.norm,
            init_std=self.init_std,
        )
