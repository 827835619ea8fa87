"""Values off the default for every key of transformers' configs, and tiny models to try them on.

Run by itself, tries all of them (``--help`` for a part of them, or to resume)::

    python -m tests.oracle.config_values [model type] ...
"""

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from tests.oracle import config_parity

from ziggurat.models.conversion.config_keys import HARMLESS, recorded

ROPES: tuple[Any, ...] = (
    {"rope_type": "default", "rope_theta": 300.0},
    {"rope_type": "linear", "factor": 3.0},
    {"type": "linear", "factor": 3.0, "attention_factor": 2.0, "rope_theta": 100.0},
    {"rope_type": "dynamic", "factor": 3.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8},
    {"rope_type": "llama3", "factor": 8.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    {"rope_type": "yarn", "factor": 4.0, "finetuned": True},
    {"rope_type": "yarn", "factor": 4.0, "truncate": False, "beta_fast": 8, "beta_slow": 2},
    {"rope_type": "yarn", "factor": 4.0, "truncate": None, "beta_fast": None, "beta_slow": 0},
    {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.9},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.5},
    {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 4},
    {"rope_type": "linear", "factor": 3.0, "mscale_all_dim": 1.0},
    {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
     "original_max_position_embeddings": 8},
    {"rope_type": "default", "partial_rotary_factor": 0.5},
    {"rope_type": "default", "factor": 9.0},
    {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    {"factor": 3.0},
    {},
    None,
)  # fmt: skip
"""Rotary settings."""
NESTED: tuple[Any, ...] = tuple(
    dict.fromkeys(keys, one)
    for one in ROPES
    for keys in (
        ("full_attention",),
        ("sliding_attention",),
        ("full_attention", "sliding_attention"),
    )
)
"""The same by type of layer."""
VALUES: Mapping[str, tuple[Any, ...]] = {
    "architectures": (None, []),
    "auto_map": ({"AutoModel": "modeling_x.Model"},),
    "attention_chunk_size": (4,),
    "decoder_sparse_step": (2, 3),
    "dtype": ("bfloat16", "float32"),
    "first_k_dense_replace": (0, 2),
    "head_dim": (4, 16, None),
    "hidden_size": (32,),
    "id2label": ({"0": "no", "1": "yes"}, {"0": "only"}),
    "image_size": (16, [8, 16], [12]),
    "intermediate_size": (16,),
    "kv_lora_rank": (8,),
    "label2id": ({"no": 0},),
    "full_attn_idxs": ([], [1], [0, 1], [7]),
    "layer_types": (
        ["conv", "full_attention"],
        ["conv"] * 2,
        ["full_attention"] * 2,
        ["sliding_attention"] * 2,
        ["sliding_attention", "full_attention"],
        ["full_attention", "sliding_attention"],
        ["chunked_attention"] * 2,
        ["full_attention"],
    ),
    "max_position_embeddings": (8, 64),
    "max_window_layers": (0, 1, 5),
    "mlp_only_layers": ([0], [0, 1], [7], []),
    "n_group": (1, 4),
    "n_inner": (40, None),
    "n_positions": (64,),
    "no_rope_layer_interval": (1, 2, 5),
    "no_rope_layers": ([0, 1], [1, 1], [0, 0], [1], [1, 1, 0]),
    "num_attention_heads": (2, 8),
    "num_experts": (3,),
    "num_experts_per_tok": (1, 3),
    "num_hidden_layers": (1, 3),
    "num_key_value_heads": (1, 4, None),
    "num_local_experts": (3,),
    "n_routed_experts": (8,),
    "n_shared_experts": (2,),
    "original_max_position_embeddings": (8,),
    "patch_size": (3, 6, [4, 3]),
    "partial_rotary_factor": (0.5, 1.0),
    "per_layer_config": ({"0": {"sliding_window": 3}}, {}),
    "problem_type": ("regression",),
    "q_lora_rank": (None, 8),
    "qk_nope_head_dim": (4,),
    "qk_rope_head_dim": (8,),
    "rms_norm_eps": (1e-2, 1e-6),
    "rope_parameters": ROPES,
    "rope_scaling": ROPES,
    "rope_theta": (50.0, 1000000, None),
    "routed_scaling_factor": (1.0, 4.0),
    "sliding_window": (None, 1, 5, 100),
    "sliding_window_pattern": (1, 2, 3),
    "swiglu_limit": (0.5,),
    "text_config": (3, []),
    "vision_config": (3, []),
    "topk_group": (1, 2),
    "time_step_limit": ([0.0, 0.5], [0.5, {"__float__": "Infinity"}], [0.1], None),
    "torch_dtype": ("bfloat16",),
    "v_head_dim": (4,),
    "vocab_size": (64,),
}
"""Values to try for keys that have a meaning of their own."""
COMMON: dict[str, Any] = {
    "vocab_size": config_parity.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 16,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
}
CONVOLUTIONS = {key: value for key, value in COMMON.items() if key != "rms_norm_eps"} | {
    "layer_types": ["conv", "full_attention"],
}
MOE = {"num_experts_per_tok": 2}
LATENT = {
    "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 16, "n_group": 2,
    "topk_group": 1, "kv_lora_rank": 12, "q_lora_rank": 10, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6, "v_head_dim": 6, "first_k_dense_replace": 1, "num_key_value_heads": 4,
    "head_dim": 4,
}  # fmt: skip
SHARED = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 20, "num_experts": 4}
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6,
    "linear_value_head_dim": 10, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
GROUPED = {
    "n_routed_experts": 4, "n_shared_experts": 1, "moe_intermediate_size": 16, "n_group": 2,
    "topk_group": 1,
}  # fmt: skip
SPARSE = {key: value for key, value in COMMON.items() if key != "intermediate_size"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
BERT = {
    "vocab_size": config_parity.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 32,
}  # fmt: skip
IMAGE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 12,
    "patch_size": 4,
}  # fmt: skip
GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 16, "sliding_window": 5}
GEMMA4 = {
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size_per_layer_input": 0,
    "global_head_dim": 8, "sliding_window": 5,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
WINDOWS = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
FULL = {"layer_types": ["full_attention"] * 2}
LAYER_NORM = {key: value for key, value in COMMON.items() if key != "rms_norm_eps"}
NEOX = {k: v for k, v in LAYER_NORM.items() if k not in ("num_key_value_heads", "head_dim")}
FALCON = {key: value for key, value in NEOX.items() if key != "intermediate_size"}
ALPHA = {"rope_type": "dynamic", "factor": 1.0, "alpha": 20.0}
GROWTH = YARN | {"llama_4_scaling_beta": 0.4, "original_max_position_embeddings": 4}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.0, 2.0, 5.0, 9.0],
}
BASES: Mapping[str, tuple[dict[str, Any], ...]] = {
    "granitemoehybrid": (
        COMMON | MOE | {"layer_types": ["linear_attention", "full_attention"], "mamba_n_heads": 8,
                        "mamba_d_state": 6, "num_local_experts": 4, "hidden_act": "silu",
                        "position_embedding_type": "rope", "shared_intermediate_size": 20},
    ),
    "lfm2": (
        CONVOLUTIONS | {"block_multiple_of": 8},
        CONVOLUTIONS | {"conv_bias": True, "block_auto_adjust_ff_dim": False},
    ),
    "lfm2_moe": (
        CONVOLUTIONS | MOE | {"num_experts": 4, "num_dense_layers": 1, "moe_intermediate_size": 16},
    ),
    "llama": (COMMON, COMMON | {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "mamba2": (
        {"vocab_size": config_parity.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
         "num_heads": 8, "head_dim": 8, "n_groups": 2, "state_size": 6,
         "time_step_limit": [0.2, 3.0]},
    ),
    "mistral": (COMMON, COMMON | {"sliding_window": 5}),
    "mixtral": (COMMON | MOE | {"num_local_experts": 4, "sliding_window": 6},),
    "qwen2": (
        COMMON,
        COMMON | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": (
        COMMON | {"rope_parameters": YARN},
        COMMON | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3_moe": (
        COMMON | MOE | {"num_experts": 4, "moe_intermediate_size": 16},
        COMMON | MOE | {"num_experts": 4, "moe_intermediate_size": 16, "use_sliding_window": True,
                        "sliding_window": 5},
    ),
    "gemma2": (COMMON | GEMMA,),
    "gemma3_text": (COMMON | GEMMA | {"sliding_window_pattern": 2},),
    "gpt_oss": (
        COMMON | MOE | {"num_local_experts": 4, "sliding_window": 5, "rope_parameters": YARN},
    ),
    "deepseek_v3": (COMMON | MOE | LATENT, COMMON | MOE | LATENT | {"rope_parameters": YARN}),
    "arcee": (COMMON, COMMON | {"rope_parameters": YARN}),
    "cohere": (LAYER_NORM, LAYER_NORM | {"use_qk_norm": True, "logit_scale": 1.5}),
    "cohere2": (LAYER_NORM | WINDOWS,),
    "exaone4": (COMMON | WINDOWS, COMMON | FULL | {"sliding_window": None}),
    "falcon": (
        FALCON,
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
        FALCON | {"parallel_attn": False, "multi_query": False, "bias": True},
    ),
    "gemma": (COMMON,),
    "gemma4_text": (
        COMMON | GEMMA4,
        COMMON | GEMMA4 | {"attention_k_eq_v": True, "num_global_key_value_heads": 1,
                           "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
                           "moe_intermediate_size": 16},
    ),
    "glm": (COMMON,),
    "glm4": (COMMON | {"attention_bias": False},),
    "gpt_neox": (NEOX, NEOX | {"rotary_pct": 0.5, "use_parallel_residual": False}),
    "granite": (COMMON | {"attention_multiplier": 0.3, "residual_multiplier": 0.5},),
    "helium": (COMMON | {"head_dim": 8},),
    "hunyuan_v1_dense": (COMMON, COMMON | {"rope_parameters": ALPHA}),
    "ministral": (COMMON | {"sliding_window": 5}, COMMON | WINDOWS),
    "ministral3": (COMMON | {"rope_parameters": GROWTH},),
    "nemotron": (LAYER_NORM,),
    "phi3": (
        COMMON | {"original_max_position_embeddings": 8},
        COMMON | {"sliding_window": 5, "partial_rotary_factor": 0.5},
        COMMON | {"original_max_position_embeddings": 8, "rope_parameters": LONG},
    ),
    "opt": (
        {"vocab_size": config_parity.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4, "ffn_dim": 24, "max_position_embeddings": 32},
    ),
    "phi": (LAYER_NORM, LAYER_NORM | {"partial_rotary_factor": 1.0, "qk_layernorm": True}),
    "seed_oss": (COMMON,),
    "stablelm": (LAYER_NORM, LAYER_NORM | {"qk_layernorm": True, "use_parallel_residual": True}),
    "starcoder2": (LAYER_NORM | {"sliding_window": 5},),
    "smollm3": (
        COMMON | {"no_rope_layer_interval": 2},
        COMMON | {"use_sliding_window": True, "sliding_window": 5, "no_rope_layers": [1, 0]},
    ),
    "olmo2": (COMMON, COMMON | {"rope_parameters": YARN}),
    "olmo3": (COMMON | WINDOWS,),
    "deepseek_v2": (
        COMMON | MOE | LATENT | {"topk_method": "group_limited_greedy"},
        COMMON | MOE | LATENT | {"topk_method": "greedy", "rope_parameters": YARN},
    ),
    "dots1": (COMMON | MOE | GROUPED | {"sliding_window": 5, "max_window_layers": 1},),
    "ernie4_5": (COMMON,),
    "ernie4_5_moe": (
        COMMON | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
    ),
    "glm4_moe": (COMMON | MOE | GROUPED, COMMON | MOE | GROUPED | {"rope_parameters": YARN}),
    "granitemoe": (COMMON | MOE | {"num_local_experts": 4, "attention_multiplier": 0.35},),
    "hunyuan_v1_moe": (COMMON | {"num_experts": 4, "moe_topk": 2},),
    "minimax_m2": (COMMON | MOE | {"num_local_experts": 4, "rotary_dim": 4},),
    "olmoe": ({k: v for k, v in COMMON.items() if k != "head_dim"} | MOE | {"num_experts": 4},),
    "qwen2_moe": (
        COMMON | MOE | SHARED,
        COMMON | MOE | SHARED | {"use_sliding_window": True, "sliding_window": 5},
    ),
    "qwen3_5_moe_text": (SPARSE | MOE | SHARED | DELTA,),
    "qwen3_5_text": (COMMON | DELTA,),
    "qwen3_next": (COMMON | MOE | SHARED | DELTA,),
    "solar_open": (SPARSE | MOE | GROUPED,),
    "gpt2": (
        {"vocab_size": config_parity.VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4,
         "n_positions": 32},
    ),
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "camembert", "mpnet", "nomic_bert"),
        (BERT,),
    ),
    "deberta-v2": (
        BERT | {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["c2p", "p2c"],
                "position_biased_input": False, "max_relative_positions": 16},
        BERT | {"relative_attention": True, "share_att_key": True, "norm_rel_ebd": "layer_norm",
                "pos_att_type": "p2c|c2p", "conv_kernel_size": 3, "type_vocab_size": 2},
        BERT,
    ),
    "electra": (BERT | {"embedding_size": 16},),
    "distilbert": (
        {"vocab_size": config_parity.VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4,
         "hidden_dim": 24, "max_position_embeddings": 32},
    ),
    "vit": (IMAGE | {"intermediate_size": 24},),
    "dinov2": (IMAGE | {"mlp_ratio": 2},),
    "dinov2_with_registers": (IMAGE | {"mlp_ratio": 2},),
    "dinov3_vit": (
        IMAGE | {"intermediate_size": 24, "num_register_tokens": 2},
        IMAGE | {"intermediate_size": 24, "use_gated_mlp": True, "key_bias": True},
    ),
    "clip": ({"text_config": BERT | {"eos_token_id": 7}, "projection_dim": 16,
              "vision_config": IMAGE | {"intermediate_size": 24}},),
    "siglip": ({"text_config": BERT | {"max_position_embeddings": config_parity.TOKENS},
                "vision_config": IMAGE | {"intermediate_size": 24}},),
    "modernbert": (
        BERT | {"num_hidden_layers": 4, "local_attention": 6, "pad_token_id": 0},
    ),
}  # fmt: skip
"""For each type of model, configs in which its switches are on and off."""
LEFT_OUT = {
    "quantization_config": "says how files hold weights; there are tests of each form",
    "transformers_version": "a version",
    "validate": "a method",
}


REFUSED_ALL_THE_SAME = (
    "partial_rotary_factor",  # transformers' plain rotation drops it, and its scalings fail on it
    "use_bidirectional_attention",  # Gemma 2's mask does not know it, but some attention kernels do
    "add_cross_attention",  # it has weights, for an encoder's states that no text gives
    "gelu_10",  # clipped at 10, which tiny models do not reach
    "found 'relu6'",  # clipped at 6, where the default is ReLU
    "leaves such weights as they are",  # DeepSeek-V2's own code divides them by their sum
    "the experts of",  # more experts than its groups hold: the surplus ones weigh nothing
    "by its other name",  # a key and its alias differ: transformers takes the later one
)
"""What we say of values that ask for something that transformers does not do."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One key set to one value."""

    model_type: str
    base: int
    key: str
    value: Any

    def __str__(self) -> str:
        return f"{self.model_type}[{self.base}] {self.key} = {json.dumps(self.value)}"

    def number(self) -> int:
        """A number by which trials are drawn, the same in every run."""
        return int.from_bytes(hashlib.blake2b(str(self).encode(), digest_size=4).digest(), "big")

    def verdict(self, whole: bool = True) -> config_parity.Verdict:
        """Our reading against transformers'.

        Args:
            whole: run transformers' model also where it reads nothing that differs.
        """
        base = {"model_type": self.model_type, **BASES[self.model_type][self.base]}
        named = {**base, "architectures": [architecture(self.model_type)]}
        compared = config_parity.comparison(json.dumps(named))
        inert = self.key in fields(self.model_type) or self.key in HARMLESS
        found = compared.verdict(self.key, self.value, must_accept_inert=inert, whole=whole)
        refused = found.fault.startswith("refused")
        if refused and any(x in found.fault for x in REFUSED_ALL_THE_SAME):
            return config_parity.Verdict("refused")
        return found


def architecture(model_type: str) -> str:
    """The class that is read of a type."""
    tasks = recorded(model_type).classes.values()
    task = "headless" if "masked" in tasks or "causal" not in tasks else "causal"
    return next(name for name, t in recorded(model_type).classes.items() if t == task)


@functools.cache
def fields(model_type: str) -> frozenset[str]:
    """The keys that transformers' class of a type takes, with those that it calls otherwise."""
    import transformers

    cls = transformers.CONFIG_MAPPING[model_type]
    names = {field.name for field in dataclasses.fields(cls)} | set(cls.attribute_map)
    generation = set(transformers.GenerationConfig().to_dict())
    return frozenset(names | generation) - {"_from_model_config"}


def trials(model_type: str) -> Iterator[Trial]:
    """Every key of a type with every value to try, on every base."""
    record = recorded(model_type)
    keys = fields(model_type) | record.defaults.keys() | HARMLESS.keys() | {"rope_scaling"}
    for number, base in enumerate(BASES[model_type]):
        for key in sorted(keys - LEFT_OUT.keys() - {"model_type"}):
            if key.startswith("_"):
                continue
            own = record.aliases.get(key, key)
            value = base.get(own, record.defaults.get(own))
            for other in _values(model_type, own, value):
                yield Trial(model_type, number, key, other)


def _values(model_type: str, key: str, value: Any) -> tuple[Any, ...]:
    if key == "rope_parameters" and model_type in ("gemma3_text", "gemma4_text", "olmo3"):
        return NESTED
    if key in ("hidden_act", "hidden_activation", "activation_function"):
        from transformers.activations import ACT2FN

        return (*ACT2FN, None)
    if key in VALUES:
        return VALUES[key]
    if key in HARMLESS:
        return True, 3
    if isinstance(value, bool):
        return not value, None
    if isinstance(value, int):
        return value + 1, 0, None
    if isinstance(value, float):
        return 2 * value + 0.125, 0.0, None
    if isinstance(value, str):
        return "other", "", None
    if isinstance(value, (list, dict)):
        return type(value)(), None
    return True, False, 3, "text", []


if __name__ == "__main__":
    from tests.oracle import config_sweep

    sys.exit(config_sweep.main())
