"""Cases of GPT-OSS."""

from tests.oracle.families.table import VOCABULARY, Table

TABLE = Table(
    architecture="GptOssForCausalLM",
    base={
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 6,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    },
    cases={
        "plain": {},
        "gate-clamped": {
            "swiglu_limit": 0.5,
            "swiglu_alpha": 1.2,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
        },
        "many-switches": {
            "num_hidden_layers": 3,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "num_experts_per_tok": 1,
            "rms_norm_eps": 1e-2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    },
)
