"""GPT-NeoX in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_settings import hf_rope_parameters, partial_rotary_factor
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import (
    decoder_names,
    read_fields,
    read_rotary,
    write_fields,
)
from ziggurat.models.families.gpt_neox.config import GPTNeoXConfig

EPS = "layer_norm_eps"
NAMES = {
    "model.embed_tokens": "gpt_neox.embed_in",
    "model.norm": "gpt_neox.final_layer_norm",
    "model.layers": "gpt_neox.layers",
    "self_attn.o_proj": "attention.dense",
    "mlp.up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
    "lm_head": "embed_out",
}


def from_hf(values: Mapping[str, Any]) -> GPTNeoXConfig:
    """``config.json`` of ``GPTNeoXForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf, eps=EPS)
    length = settings["max_sequence_length"]
    settings |= read_rotary(hf, length, partial=True, theta="rotary_emb_base")
    settings["partial_rotary_factor"] = partial_rotary_factor(hf, 0.25, "rotary_pct")
    settings["attention_bias"] = hf.get("attention_bias")
    settings["parallel"] = hf.get("use_parallel_residual")
    hf.finish()
    return checked(GPTNeoXConfig, settings, "config.json")


def to_hf(config: GPTNeoXConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    part = {"partial_rotary_factor": config.partial_rotary_factor}
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        **write_fields(config, eps=EPS, mlp=config.plain_mlp()),
        "rope_parameters": hf_rope_parameters(config.rope) | part,
        "attention_bias": config.attention_bias,
        "use_parallel_residual": config.parallel,
    }


def hf_names(config: GPTNeoXConfig) -> list[WeightName]:
    """Weight names in safetensors files; query, key and value are one tensor there, by head."""
    attention = config.attention()
    rows = np.arange(3 * attention.heads * attention.head_dim)
    heads = rows.reshape(attention.heads, 3, attention.head_dim)
    parts = {
        f"self_attn.{name}_proj": tuple(heads[:, place].reshape(-1).tolist())
        for place, name in enumerate("qkv")
    }
    names = decoder_names(config.decoder())
    names = block_names.joined(names, "attention.query_key_value", parts)
    return block_names.renamed(names, NAMES)
