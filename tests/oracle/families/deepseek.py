"""Cases of DeepSeek-V2 and V3."""

from tests.oracle.families.table import VOCABULARY, Table

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 1e4,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
TABLE = Table(
    architecture="DeepseekV3ForCausalLM",
    base={
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "q_lora_rank": 20,
        "kv_lora_rank": 12,
        "qk_nope_head_dim": 10,
        "qk_rope_head_dim": 6,
        "v_head_dim": 8,
        "first_k_dense_replace": 2,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.25,
    },
    cases={
        "plain": {},
        "yarn": {"rope_parameters": YARN},
        "no-query-latent": {
            "q_lora_rank": None,
            "rope_interleave": False,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
        },
        "many-switches": {
            "first_k_dense_replace": 0,
            "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.5},
            "attention_bias": True,
            "n_shared_experts": 2,
            "routed_scaling_factor": 1.5,
            "tie_word_embeddings": True,
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-2,
        },
        "v2": {
            "architecture": "DeepseekV2ForCausalLM",
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 1.5,
        },
        "v2-greedy": {
            "architecture": "DeepseekV2ForCausalLM",
            "q_lora_rank": None,
            "n_group": None,
            "topk_group": None,
            "first_k_dense_replace": 1,
            "n_shared_experts": 1,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.7},
        },
    },
)
