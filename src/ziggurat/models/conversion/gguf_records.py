"""Records of the architectures that GGUF files name, by our family."""

from collections.abc import Mapping
from typing import Any

from ziggurat.models.conversion.gguf_architecture import NEEDED, GgufArchitecture

_EXPERTS = {
    "expert_count": ("n_experts", NEEDED),
    "expert_used_count": ("experts_per_token", NEEDED),
}
_QUERY_BIAS = {"attention_bias": "blk.0.attn_q.bias"}
_BIASES = _QUERY_BIAS | {"mlp_bias": "blk.0.ffn_up.bias"}
_GRANITE = {
    "attention.scale": ("attention_multiplier", NEEDED),
    "embedding_scale": ("embedding_multiplier", 1.0),
    "residual_scale": ("residual_multiplier", 1.0),
    "logit_scale": ("logits_scaling", 1.0),
}


def _query_scale(of_27b: int) -> Any:
    """Scale of Gemma's queries: llama.cpp takes that of the model with 27 billion parameters, which
    it knows by its number of layers, by width and heads."""

    def derived(settings: Mapping[str, Any]) -> dict[str, Any]:
        by_width = settings["d_model"] / settings["n_heads"]
        return {"query_scale": by_width if settings["n_layers"] == of_27b else settings["head_dim"]}

    return derived


RECORDS: Mapping[str, GgufArchitecture] = {
    "gemma": GgufArchitecture(
        "gemma",
        fixed={"activation": "gelu_tanh", "attention_bias": False},
        tied=True,
        norm_offset=1.0,
    ),
    "gemma2": GgufArchitecture(
        "gemma2",
        keys={
            "attn_logit_softcapping": ("attention_softcap", 50.0),
            "final_logit_softcapping": ("logit_softcap", 30.0),
        },
        fixed={"activation": "gelu_tanh", "attention_bias": False, "pattern": ("local", "global")},
        derived=_query_scale(46),
        window=True,
        tied=True,
        norm_offset=1.0,
    ),
    "granite": GgufArchitecture(
        "granite",
        keys=_GRANITE,
        fixed={"activation": "silu"},
        told=_BIASES,
        interleaved=True,
    ),
    "granitemoe": GgufArchitecture(
        "granitemoe",
        keys=_GRANITE | _EXPERTS,
        fixed={"activation": "silu"},
        told=_QUERY_BIAS,
        interleaved=True,
    ),
    "olmo2": GgufArchitecture(
        "olmo2",
        fixed={"activation": "silu", "attention_bias": False},
        untied=True,
        square=True,
    ),
    "olmoe": GgufArchitecture(
        "olmoe",
        keys=_EXPERTS,
        fixed={"activation": "silu", "attention_bias": False, "normalise_weights": False},
        derived=lambda settings: {"d_ff_expert": settings["d_ff"]},
        dense=False,
        untied=True,
    ),
    "phi3": GgufArchitecture("phi3", fixed={"activation": "silu"}, square=True),
    "phi": GgufArchitecture(
        "phi2", fixed={"activation": "gelu_tanh", "head_norm": False}, layer_norm=True
    ),
    "starcoder2": GgufArchitecture(
        "starcoder2",
        square=True,
        fixed={"activation": "gelu_tanh"},
        told={"bias": "blk.0.attn_q.bias"},
        layer_norm=True,
    ),
    "glm4": GgufArchitecture("glm4", fixed={"activation": "silu"}, told=_QUERY_BIAS),
    "cohere": GgufArchitecture(
        "command-r",
        square=True,
        keys={"logit_scale": ("logit_scale", NEEDED)},
        fixed={"activation": "silu", "attention_bias": False},
        told={"head_norm": "blk.0.attn_q_norm.weight"},
        layer_norm=True,
        tied=True,
    ),
    "cohere2": GgufArchitecture(
        "cohere2",
        square=True,
        keys={"logit_scale": ("logit_scale", NEEDED)},
        fixed={
            "activation": "silu",
            "attention_bias": False,
            "pattern": ("local", "local", "local", "global"),
        },
        layer_norm=True,
        window=True,
        tied=True,
    ),
    "qwen2_moe": GgufArchitecture(
        "qwen2moe",
        square=True,
        keys=_EXPERTS
        | {
            "expert_feed_forward_length": ("d_ff_expert", NEEDED),
            "expert_shared_feed_forward_length": ("d_ff_shared", NEEDED),
        },
        fixed={
            "activation": "silu",
            "attention_bias": True,
            "normalise_weights": False,
            "sparse_every": 1,
            "dense_layers": (),
        },
    ),
    "smollm3": GgufArchitecture(
        "smollm3",
        fixed={"activation": "silu", "attention_bias": False, "mlp_bias": False},
        interleaved=True,
    ),
    "arcee": GgufArchitecture(
        "arcee",
        fixed={"activation": "relu2", "attention_bias": False, "mlp_bias": False},
        interleaved=True,
    ),
    "seed_oss": GgufArchitecture(
        "seed_oss",
        fixed={"activation": "silu", "attention_out_bias": False, "mlp_bias": False},
        told=_QUERY_BIAS,
    ),
    "hunyuan_dense": GgufArchitecture(
        "hunyuan-dense", fixed={"activation": "silu", "attention_bias": False}
    ),
    "ernie4_5": GgufArchitecture("ernie4_5", fixed={"activation": "silu", "bias": False}),
    "nemotron": GgufArchitecture(
        "nemotron",
        untied=True,
        square=True,
        fixed={"activation": "relu2"},
        told=_BIASES,
        layer_norm=True,
        norm_offset=1.0,
    ),
    "stablelm": GgufArchitecture(
        "stablelm",
        keys={"use_parallel_residual": ("parallel", False)},
        fixed={"activation": "silu", "head_norm": False},
        told=_QUERY_BIAS,
        layer_norm=True,
    ),
}
"""By the name of our family."""
