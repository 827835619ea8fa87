"""Cases of MiniMax-M2."""

from tests.oracle.families.table import VOCABULARY, Table

TABLE = Table(
    architecture="MiniMaxM2ForCausalLM",
    base={
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_local_experts": 6,
        "num_experts_per_tok": 3,
        "head_dim": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    },
    cases={
        "plain": {},
        "partial-rotary": {
            "rotary_dim": 6,
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-2,
        },
    },
)
