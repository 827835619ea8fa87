"""Whisper in Hugging Face's ``config.json`` and safetensors."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.encoder_fields import linears, norms
from ziggurat.models.families.whisper.config import WhisperConfig

COPIES: Mapping[str, str] = {"proj_out.weight": "model.decoder.embed_tokens.weight"}
"""Tensors that files may hold, each of which repeats another."""
WITHOUT_EFFECT = (
    *("activation_dropout", "decoder_layerdrop", "encoder_layerdrop"),  # in training only
    *("apply_spec_augment", "mask_feature_length", "mask_feature_min_masks", "mask_feature_prob"),
    *("mask_time_length", "mask_time_min_masks", "mask_time_prob"),
    *("classifier_proj_size", "use_weighted_layer_sum"),  # a classifier's
    "forced_decoder_ids",  # of generating, as generation_config.json says it
    "median_filter_width",  # of times of single words
    "scale_embedding",  # transformers makes the factor and does not apply it
)
"""Keys that change no logits."""


def from_hf(values: Mapping[str, Any]) -> WhisperConfig:
    """``config.json`` of ``WhisperForConditionalGeneration`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    for key in WITHOUT_EFFECT:
        hf.given(key)
    hf.refuse_unless("is_encoder_decoder", (True,))
    hf.refuse_unless("tie_word_embeddings", (True,), "the output matrix is the embedding here")
    settings = {
        "vocab_size": hf.need("vocab_size"),
        "d_model": hf.need("d_model"),
        "n_encoder_layers": hf.need("encoder_layers"),
        "n_decoder_layers": hf.need("decoder_layers"),
        "n_encoder_heads": hf.need("encoder_attention_heads"),
        "n_decoder_heads": hf.need("decoder_attention_heads"),
        "encoder_d_ff": hf.get("encoder_ffn_dim"),
        "decoder_d_ff": hf.get("decoder_ffn_dim"),
        "mel_bins": hf.get("num_mel_bins"),
        "audio_positions": hf.get("max_source_positions"),
        "max_sequence_length": hf.get("max_target_positions"),
        "activation": activation(hf, "activation_function"),
        "init_std": hf.get("init_std"),
    }
    hf.finish()
    return checked(WhisperConfig, settings, "config.json")


def to_hf(config: WhisperConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "encoder_layers": config.n_encoder_layers,
        "decoder_layers": config.n_decoder_layers,
        "encoder_attention_heads": config.n_encoder_heads,
        "decoder_attention_heads": config.n_decoder_heads,
        "encoder_ffn_dim": config.feed_forward("encoder"),
        "decoder_ffn_dim": config.feed_forward("decoder"),
        "num_mel_bins": config.mel_bins,
        "max_source_positions": config.audio_positions,
        "max_target_positions": config.max_sequence_length,
        "activation_function": hf_activation(config.activation),
        "init_std": config.init_std,
    }


def hf_names(config: WhisperConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    parts = [*_part(config, "encoder"), *_part(config, "decoder")]
    convolutions = []
    for number in (1, 2):
        theirs = f"model.encoder.conv{number}"
        ours = f"encoder.input.kernels_{number}"
        convolutions.append(WeightName(ours, f"{theirs}.weight"))
        convolutions.append(WeightName(f"encoder.input.bias_{number}", f"{theirs}.bias"))
    return [
        *convolutions,
        WeightName("encoder.input.positions", "model.encoder.embed_positions.weight"),
        WeightName("embedding.table", "model.decoder.embed_tokens.weight"),
        WeightName("positions.table", "model.decoder.embed_positions.weight"),
        *parts,
    ]


def _part(config: WhisperConfig, part: Literal["encoder", "decoder"]) -> list[WeightName]:
    """Names of the blocks of the encoder or the decoder, and of its final norm."""
    layer = f"model.{part}.layers.{{layer}}."
    ours = "encoder." if part == "encoder" else ""
    attentions = {"attention": "self_attn"}
    if part == "decoder":
        attentions["cross_attention"] = "encoder_attn"
    names = linears(
        {f"{ours}blocks.mlp.up": layer + "fc1", f"{ours}blocks.mlp.down": layer + "fc2"}
    )
    names += norms(
        {
            f"{ours}blocks.mlp_norm": layer + "final_layer_norm",
            f"{ours}final_norm": f"model.{part}.layer_norm",
        }
    )
    for name, theirs in attentions.items():
        here, there = f"{ours}blocks.{name}", layer + theirs
        names += norms({f"{here}_norm": f"{there}_layer_norm"})
        names += linears({f"{here}.key": f"{there}.k_proj"}, bias=False)
        names += linears(
            {
                f"{here}.query": f"{there}.q_proj",
                f"{here}.value": f"{there}.v_proj",
                f"{here}.out": f"{there}.out_proj",
            }
        )
    count = config.n_encoder_layers if part == "encoder" else config.n_decoder_layers
    return [
        dataclasses.replace(name, layers=tuple(range(count))) if "{layer}" in name.theirs else name
        for name in names
    ]
