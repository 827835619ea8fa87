"""Cases of Hunyuan V1 with mixtures of experts."""

from tests.oracle.families.table import VOCABULARY, Table

MIXTURE = {"num_experts": 6, "moe_topk": 3}
ALPHA = {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0, "rope_theta": 1e4}
TABLE = Table(
    architecture="HunYuanMoEV1ForCausalLM",
    base={
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 24,
        "head_dim": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    },
    cases={
        "plain": MIXTURE,
        "many-switches": MIXTURE
        | {
            "moe_topk": [2, 2],
            "attention_bias": True,
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-2,
            "rope_parameters": ALPHA,
        },
    },
)
