"""Cases of Mamba-2."""

from tests.oracle.families.table import VOCABULARY, Table

TABLE = Table(
    architecture="Mamba2ForCausalLM",
    base={
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 2,
        "state_size": 6,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "chunk_size": 8,
    },
    cases={
        "plain": {},
        "one-group-tied": {
            "num_hidden_layers": 6,
            "n_groups": 1,
            "tie_word_embeddings": True,
            "conv_kernel": 3,
        },
        "biases-limits": {"use_bias": True, "time_step_limit": (0.4, 0.9), "n_groups": 8},
        "many-switches": {
            "use_conv_bias": False,
            "hidden_act": "gelu",
            "layer_norm_epsilon": 1e-2,
            "expand": 4,
            "head_dim": 16,
            "time_step_limit": (0.5, float("inf")),
            "residual_in_fp32": False,
        },
    },
)
