"""Cases of Mixtral."""

from tests.oracle.families.table import VOCABULARY, Table

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 1e4,
}
TABLE = Table(
    architecture="MixtralForCausalLM",
    base={
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    },
    cases={
        "plain": {},
        "window": {"sliding_window": 7, "num_local_experts": 3, "num_experts_per_tok": 1},
        "many-switches": {
            "num_key_value_heads": 4,
            "head_dim": 12,
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-2,
            "rope_parameters": YARN,
            "router_aux_loss_coef": 0.02,
        },
    },
)
