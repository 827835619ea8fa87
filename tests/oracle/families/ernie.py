"""Cases of Ernie 4.5."""

from tests.oracle.families.table import VOCABULARY, Table

MIXTURE = {
    "moe_intermediate_size": 16,
    "moe_num_experts": 6,
    "moe_k": 3,
}
DENSE = {"architecture": "Ernie4_5ForCausalLM", "head_dim": 12, "num_hidden_layers": 2}
TABLE = Table(
    architecture="Ernie4_5_MoeForCausalLM",
    base={
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    },
    cases={
        "plain": MIXTURE,
        "many-switches": MIXTURE
        | {
            "num_hidden_layers": 5,
            "moe_layer_start_index": 0,
            "moe_layer_end_index": 3,
            "moe_layer_interval": 2,
            "moe_num_shared_experts": 1,
            "moe_norm_min": 0.95,
            "tie_word_embeddings": False,
            "hidden_act": "gelu",
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        },
        "no-shared": MIXTURE | {"moe_num_shared_experts": 0, "num_hidden_layers": 2},
        "dense": DENSE,
        "dense-biases": DENSE | {"use_bias": True, "tie_word_embeddings": False},
    },
)
