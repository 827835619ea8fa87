"""Cases of Granite 4."""

from tests.oracle.families.table import VOCABULARY, Table

TABLE = Table(
    architecture="GraniteMoeHybridForCausalLM",
    base={
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 16,
        "shared_intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "layer_types": [
            "linear_attention",
            "linear_attention",
            "full_attention",
            "linear_attention",
        ],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "mamba_n_heads": 8,
        "mamba_d_state": 6,
        "attention_multiplier": 0.3,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.6,
        "logits_scaling": 0.5,
        "max_position_embeddings": 64,
        "initializer_range": 0.25,
        "pad_token_id": 0,
    },
    cases={
        "experts": {},
        "dense-rope": {
            "num_local_experts": 0,
            "position_embedding_type": "rope",
            "tie_word_embeddings": True,
            "shared_intermediate_size": 160,
        },
        "many-switches": {
            "attention_bias": True,
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-2,
            "mamba_n_groups": 2,
            "mamba_conv_bias": False,
            "mamba_proj_bias": True,
            "mamba_d_conv": 3,
            "time_step_limit": (0.3, 2.0),
            "position_embedding_type": "rope",
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        },
    },
)
