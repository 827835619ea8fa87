"""Cases of Qwen 2 and 3 with mixtures of experts."""

from tests.oracle.families.table import VOCABULARY, Table

QWEN_2 = {
    "architecture": "Qwen2MoeForCausalLM",
    "shared_expert_intermediate_size": 20,
    "norm_topk_prob": False,
}
TABLE = Table(
    architecture="Qwen3MoeForCausalLM",
    base={
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    },
    cases={
        "plain": {},
        "every-second-layer": {"decoder_sparse_step": 2, "norm_topk_prob": False},
        "many-switches": {
            "num_hidden_layers": 3,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [2],
            "attention_bias": True,
            "tie_word_embeddings": True,
            "hidden_act": "gelu_pytorch_tanh",
            "use_sliding_window": True,
            "sliding_window": 5,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        },
        "qwen2": QWEN_2,
        "qwen2-many-switches": QWEN_2
        | {
            "num_hidden_layers": 5,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "norm_topk_prob": True,
            "qkv_bias": False,
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 3,
        },
    },
)
