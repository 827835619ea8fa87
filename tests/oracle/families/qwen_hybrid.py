"""Cases of Qwen3-Next and Qwen 3.5."""

from tests.oracle.families.table import VOCABULARY, Table

MIXTURE = {
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 20,
    "num_experts": 6,
    "num_experts_per_tok": 3,
}
DENSE = {"intermediate_size": 48}
QWEN_3_5 = {
    "architecture": "Qwen3_5ForCausalLM",
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
}
TABLE = Table(
    architecture="Qwen3NextForCausalLM",
    base={
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 6,
        "linear_value_head_dim": 10,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25
        },
    },
    cases={
        "plain": MIXTURE | DENSE,
        "many-switches": MIXTURE
        | DENSE
        | {
            "num_hidden_layers": 5,
            "layer_types": ["full_attention"] + ["linear_attention", "full_attention"] * 2,
            "linear_conv_kernel_dim": 3,
            "linear_num_value_heads": 2,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "norm_topk_prob": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-3,
            "rope_parameters": {
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
                "rope_theta": 1e4, "partial_rotary_factor": 0.5,
            },
        },
        "qwen3.5": QWEN_3_5 | DENSE,
        "qwen3.5-moe": QWEN_3_5 | MIXTURE | {"architecture": "Qwen3_5MoeForCausalLM"},
    },
    norms_about=0.1,
)  # fmt: skip
