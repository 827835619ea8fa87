"""Cases of GLM-4.5, dots.llm1 and Solar Open."""

from tests.oracle.families.table import VOCABULARY, Table

DENSE = {"intermediate_size": 48}
TABLE = Table(
    architecture="Glm4MoeForCausalLM",
    base={
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "moe_intermediate_size": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_shared_experts": 1,
        "head_dim": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.25,
    },
    cases={
        "plain": DENSE,
        "many-switches": DENSE
        | {
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 2,
            "n_shared_experts": 2,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.5,
            "use_qk_norm": True,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
            "rope_parameters": {
                "rope_type": "linear",
                "factor": 4.0,
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.75,
            },
        },
        "dots1": DENSE | {"architecture": "Dots1ForCausalLM", "norm_topk_prob": True},
        "dots1-many-switches": DENSE
        | {
            "architecture": "Dots1ForCausalLM",
            "num_hidden_layers": 4,
            "first_k_dense_replace": 1,
            "sliding_window": 5,
            "max_window_layers": 2,
            "attention_bias": True,
            "routed_scaling_factor": 0.7,
        },
        "solar": {"architecture": "SolarOpenForCausalLM", "attention_bias": True},
    },
)
