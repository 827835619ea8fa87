"""Falcon in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.rotary_settings import hf_rope
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import decoder_names, read_rotary
from ziggurat.models.families.falcon.config import FalconConfig
from ziggurat.nn.mlp import PlainMlpConfig

ACTIVATION = "activation"
DIMENSIONS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
}
SWITCHES = {
    "d_ff": "ffn_hidden_size",
    "max_sequence_length": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
    "norm_eps": "layer_norm_epsilon",
    "init_std": "initializer_range",
}
NAMES = {
    "model.embed_tokens": "transformer.word_embeddings",
    "model.norm": "transformer.ln_f",
    "model.layers": "transformer.h",
    "self_attn.o_proj": "self_attention.dense",
    "mlp.up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}


def from_hf(values: Mapping[str, Any]) -> FalconConfig:
    """``config.json`` of ``FalconForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    hf.refuse_unless("alibi", (False,), "positions as biases on scores (ALiBi) are not implemented")
    hf.refuse_unless("apply_residual_connection_post_layernorm", (False,))
    no_mask = "transformers 5.23 leaves the causal mask of this architecture out then"
    hf.refuse_unless("output_attentions", (False,), no_mask)
    settings = {ours: hf.need(theirs) for ours, theirs in DIMENSIONS.items()}
    settings |= {ours: hf.get(theirs) for ours, theirs in SWITCHES.items()}
    settings |= {"activation": activation(hf, ACTIVATION), "bias": bool(hf.get("bias"))}
    settings |= read_rotary(hf, settings["max_sequence_length"])
    settings |= _decoder_kind(hf, settings["n_heads"])
    hf.finish()
    return checked(FalconConfig, settings, "config.json")


def _decoder_kind(hf: HFConfig, heads: Any) -> dict[str, Any]:
    """Key/value heads, and whether branches are parallel and share a norm: the decoder of 40B and
    180B (``new_decoder_architecture``) is another than that of 7B and 1B."""
    newer, parallel = bool(hf.get("new_decoder_architecture")), bool(hf.get("parallel_attn"))
    multi_query, own = bool(hf.get("multi_query")), hf.given("num_kv_heads")
    norms = hf.given("num_ln_in_parallel_attn")
    if newer:
        if not parallel:
            raise ModelError(
                "config.json: parallel_attn", found=False, expected="true in the new decoder"
            )
        norms = 2 if norms is None else norms
        if norms not in (1, 2):
            raise ModelError("config.json: num_ln_in_parallel_attn", found=norms, expected="1 or 2")
        return {"n_kv_heads": own or heads, "parallel": True, "shared_norm": norms == 1}
    if parallel and norms == 2:
        raise ModelError(
            "config.json: num_ln_in_parallel_attn", found=2, expected="1 in the older decoder"
        )
    kv_heads = 1 if multi_query else own or heads
    if kv_heads not in (1, heads):
        raise ModelError(
            "config.json: num_kv_heads", found=kv_heads, expected=f"{heads} in the older decoder"
        )
    return {"n_kv_heads": kv_heads, "parallel": parallel, "shared_norm": parallel}


def to_hf(config: FalconConfig) -> dict[str, Any]:
    """Config to ``config.json``."""
    mlp = config.decoder().layers[0].block.mlp
    assert isinstance(mlp, PlainMlpConfig)
    newer = _is_newer(config)
    return {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        **{theirs: getattr(config, ours) for ours, theirs in (DIMENSIONS | SWITCHES).items()},
        "bias": config.bias,
        ACTIVATION: hf_activation(config.activation),
        "ffn_hidden_size": mlp.hidden,
        **hf_rope(config.rope),
        "alibi": False,
        "new_decoder_architecture": newer,
        "parallel_attn": config.parallel,
        "multi_query": config.n_kv_heads == 1,
        "num_kv_heads": config.n_kv_heads if newer else config.n_heads,
        "num_ln_in_parallel_attn": (1 if config.shared_norm else 2) if newer else None,
    }


def _is_newer(config: FalconConfig) -> bool:
    """Whether only the decoder of 40B and 180B has these switches.

    Raises:
        ModelError: neither has them.
    """
    newer = config.parallel and not config.shared_norm
    if config.n_kv_heads not in (1, config.n_heads):
        newer = True
    if newer and not config.parallel:
        raise ModelError(
            "export to Hugging Face: parallel",
            found="false with grouped keys",
            expected="parallel branches, or one key/value head or as many as query heads",
        )
    return newer


def hf_names(config: FalconConfig) -> list[WeightName]:
    """Weight names in safetensors files; query, key and value are one tensor there, by group."""
    attention = config.attention()
    group, dim = attention.heads // attention.kv_heads, attention.head_dim
    rows = np.arange((attention.heads + 2 * attention.kv_heads) * dim)
    groups = rows.reshape(attention.kv_heads, group + 2, dim)
    shares = {"q": groups[:, :group], "k": groups[:, group], "v": groups[:, group + 1]}
    parts = {
        f"self_attn.{name}_proj": tuple(share.reshape(-1).tolist())
        for name, share in shares.items()
    }
    norms = block_names.PRE_NORMS
    if config.parallel:
        apart = {"attention_norm": "ln_attn", "mlp_norm": "ln_mlp"}
        norms = {"attention_norm": "input_layernorm"} if config.shared_norm else apart
    names = decoder_names(config.decoder(), norms)
    names = block_names.joined(names, "self_attention.query_key_value", parts)
    return block_names.renamed(names, NAMES)
