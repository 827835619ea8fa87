"""GPT-2 in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.weight_names import AxisSlice, WeightName
from ziggurat.models.families.gpt2.config import Gpt2Config
from ziggurat.nn.mlp import PlainMlpConfig

ACTIVATION = "activation_function"


def from_hf(values: Mapping[str, Any]) -> Gpt2Config:
    """``config.json`` of ``GPT2LMHeadModel`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    hf.refuse_unless("add_cross_attention", (False,), "there is no encoder to attend to")
    settings = {
        "vocab_size": hf.need("vocab_size"),
        "d_model": hf.need("n_embd"),
        "n_layers": hf.need("n_layer"),
        "n_heads": hf.need("n_head"),
        "d_ff": hf.get("n_inner"),
        "activation": activation(hf, ACTIVATION),
        "max_sequence_length": hf.get("n_positions"),
        "scale_scores": hf.get("scale_attn_weights"),
        "scale_scores_by_layer": hf.get("scale_attn_by_inverse_layer_idx"),
        "tie_embeddings": hf.get("tie_word_embeddings"),
        "norm_eps": hf.get("layer_norm_epsilon"),
        "init_std": hf.get("initializer_range"),
    }
    hf.finish()
    return checked(Gpt2Config, settings, "config.json")


def to_hf(config: Gpt2Config) -> dict[str, Any]:
    """Config to ``config.json``."""
    mlp = config.decoder().layers[0].block.mlp
    assert isinstance(mlp, PlainMlpConfig)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": mlp.hidden,
        ACTIVATION: hf_activation(mlp.activation),
        "n_positions": config.max_sequence_length,
        "scale_attn_weights": config.scale_scores,
        "scale_attn_by_inverse_layer_idx": config.scale_scores_by_layer,
        "tie_word_embeddings": config.tie_embeddings,
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.init_std,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


def hf_names(config: Gpt2Config) -> list[WeightName]:
    """Weight names in safetensors files; query, key and value are one tensor there, and matrices
    are ``[in, out]`` as here."""
    layer, d = "transformer.h.{layer}.", config.d_model
    names = [
        WeightName("embedding.table", "transformer.wte.weight"),
        WeightName("positions.table", "transformer.wpe.weight"),
    ]
    for ours, theirs in {
        "final_norm": "transformer.ln_f",
        "blocks.attention_norm": layer + "ln_1",
        "blocks.mlp_norm": layer + "ln_2",
    }.items():
        names.append(WeightName(f"{ours}.scale", f"{theirs}.weight"))
        names.append(WeightName(f"{ours}.bias", f"{theirs}.bias"))
    for kind, there in (("kernel", "weight"), ("bias", "bias")):
        for index, ours in enumerate(("query", "key", "value")):
            part = AxisSlice(-1, slice(index * d, (index + 1) * d))
            names.append(
                WeightName(
                    f"blocks.attention.{ours}.{kind}", f"{layer}attn.c_attn.{there}", part=part
                )
            )
        for ours, theirs in {
            "attention.out": "attn.c_proj",
            "mlp.up": "mlp.c_fc",
            "mlp.down": "mlp.c_proj",
        }.items():
            names.append(WeightName(f"blocks.{ours}.{kind}", f"{layer}{theirs}.{there}"))
    if not config.tie_embeddings:
        names.append(WeightName("unembedding", "lm_head.weight"))
    return names
