"""Cases of OLMoE."""

from tests.oracle.families.table import VOCABULARY, Table

TABLE = Table(
    architecture="OlmoeForCausalLM",
    base={
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    },
    cases={
        "plain": {},
        "many-switches": {
            "norm_topk_prob": True,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-2,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        },
    },
)
