"""OPT in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import decoder_names
from ziggurat.models.families.opt.config import OptConfig

ACTIVATION = "activation_function"
NAMES = {
    "model.embed_tokens": "model.decoder.embed_tokens",
    "model.norm": "model.decoder.final_layer_norm",
    "model.layers": "model.decoder.layers",
    "input_layernorm": "self_attn_layer_norm",
    "post_attention_layernorm": "final_layer_norm",
    "self_attn.o_proj": "self_attn.out_proj",
    "mlp.up_proj": "fc1",
    "mlp.down_proj": "fc2",
}


def from_hf(values: Mapping[str, Any]) -> OptConfig:
    """``config.json`` of ``OPTForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    pre_norm, removed = hf.get("do_layer_norm_before"), hf.given("_remove_final_layer_norm")
    settings = {
        "vocab_size": hf.need("vocab_size"),
        "d_model": hf.need("hidden_size"),
        "n_layers": hf.need("num_hidden_layers"),
        "n_heads": hf.need("num_attention_heads"),
        "d_ff": hf.need("ffn_dim"),
        "activation": activation(hf, ACTIVATION),
        "max_sequence_length": hf.need("max_position_embeddings"),
        "embedding_width": hf.given("word_embed_proj_dim"),
        "pre_norm": pre_norm,
        "final_norm": bool(pre_norm) and not removed,
        "bias": hf.get("enable_bias"),
        "tie_embeddings": hf.get("tie_word_embeddings"),
        "init_std": hf.get("init_std"),
    }
    hf.finish()
    return checked(OptConfig, settings, "config.json")


def to_hf(config: OptConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "ffn_dim": config.mlp.hidden,
        ACTIVATION: hf_activation(config.activation),
        "max_position_embeddings": config.max_sequence_length,
        "word_embed_proj_dim": config.embedding_width or config.d_model,
        "do_layer_norm_before": config.pre_norm,
        "_remove_final_layer_norm": config.pre_norm and not config.final_norm,
        "enable_bias": config.bias,
        "tie_word_embeddings": config.tie_embeddings,
        "init_std": config.init_std,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "layerdrop": 0.0,
    }


def hf_names(config: OptConfig) -> list[WeightName]:
    """Weight names in safetensors files."""
    decoder = config.decoder()
    names = block_names.renamed(decoder_names(decoder), NAMES)
    names.append(WeightName("positions.table", "model.decoder.embed_positions.weight"))
    if decoder.embedding_width is not None:
        for name in ("project_in", "project_out"):
            theirs = f"model.decoder.{name}.weight"
            names.append(WeightName(f"{name}.kernel", theirs, transpose=True))
    return names
