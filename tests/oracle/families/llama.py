"""Cases of Llama and Mistral."""

from typing import Any

from tests.oracle.families.table import VOCABULARY, Table

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 5e5,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 1e4,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
SMOLLM2 = {
    "hidden_size": 72,
    "intermediate_size": 192,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
    "tie_word_embeddings": True,
}
LLAMA_3_2 = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": LLAMA3 | {"factor": 32.0},
    "tie_word_embeddings": True,
    "eos_token_id": [5, 6, 7],
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gqa-3": {"num_key_value_heads": 3},
    "gqa-2": {"num_key_value_heads": 2},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "attention-bias": {"attention_bias": True},
    "mlp-bias": {"mlp_bias": True},
    "head-dim": {"head_dim": 16},
    "one-layer": {"num_hidden_layers": 1},
    "eps": {"rms_norm_eps": 1e-2},
    "gelu": {"hidden_act": "gelu"},
    "gelu-tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu"},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "rope-linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "rope-llama3": {"rope_parameters": LLAMA3},
    "rope-yarn": {"rope_parameters": YARN},
    "rope-yarn-factor": {
        "rope_parameters": YARN | {"attention_factor": 1.3, "beta_fast": 16.0, "beta_slow": 2.0}
    },
    "rope-yarn-mscale": {
        "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.0, "truncate": False}
    },
    "rope-yarn-other-factor": {"rope_parameters": YARN | {"factor": 2.5}},
    "rope-dynamic": {"max_position_embeddings": 16, "rope_parameters": DYNAMIC},
    "rope-dynamic-within": {"rope_parameters": DYNAMIC, "num_key_value_heads": 2},
    "mistral": {
        "architecture": "MistralForCausalLM",
        "num_key_value_heads": 2,
        "sliding_window": 7,
    },
    "mistral-no-window": {
        "architecture": "MistralForCausalLM",
        "num_key_value_heads": 2,
        "sliding_window": None,
    },
    "smollm2-like": SMOLLM2,
    "llama-3.2-like": LLAMA_3_2,
    "many-switches": {
        "num_key_value_heads": 2,
        "head_dim": 10,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "hidden_act": "gelu_pytorch_tanh",
        "rope_parameters": YARN | {"beta_fast": 8.0},
    },
}

TABLE = Table("LlamaForCausalLM", BASE, CASES)
