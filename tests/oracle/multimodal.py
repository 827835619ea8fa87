"""Tiny models of images and text, as transformers makes them; and a tokenizer of words for them."""

import json
from pathlib import Path
from typing import Any

import tokenizers

VOCABULARY = 64
IMAGE, VIDEO, BEGIN, END = 60, 61, 58, 59
"""Ids of the tokens that stand for images and videos, and around them."""
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 16,
}
_SIGLIP = {key: value for key, value in _CLIP.items() if key != "projection_dim"} | {
    "model_type": "siglip_vision_model",
    "num_hidden_layers": 2,
    "image_size": 56,
}
_PIXTRAL = {
    "model_type": "pixtral",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 8,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_TOWER = {
    "depth": 1,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 24,
    "out_hidden_size": 32,
    "patch_size": 4,
}
_QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": BEGIN,
    "vision_end_token_id": END,
}

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}


def _rope(sections: list[int], **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    return {"rope_parameters": rope | more}


CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": _TEXT | {"sliding_window": 6, "query_pre_attn_scalar": 8},
        "vision_config": _SIGLIP,
        "mm_tokens_per_image": 4,
        "image_token_index": IMAGE,
        "boi_token_index": BEGIN,
        "eoi_token_index": END,
    },
    "gemma4": {
        "text_config": _TEXT
        | {
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 6,
            "vocab_size_per_layer_input": VOCABULARY,
            "global_head_dim": 12,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
        },
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "position_embedding_size": 16,
        },
        "audio_config": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "output_proj_dims": 8,
            "subsampling_conv_channels": [4, 4],
        },
        "image_token_id": IMAGE,
        "boi_token_id": BEGIN,
        "eoi_token_id": END,
        "audio_token_id": 57,
        "video_token_id": VIDEO,
    },
    "llava": {
        "text_config": _TEXT | {"model_type": "llama"},
        "vision_config": _CLIP,
        "image_token_index": IMAGE,
        "image_seq_length": 4,
    },
    "mistral3": {
        "text_config": _TEXT | {"model_type": "mistral", "sliding_window": None},
        "vision_config": _PIXTRAL,
        "image_token_index": IMAGE,
    },
    "qwen2_5_vl": {
        "text_config": {key: value for key, value in _TEXT.items() if key != "head_dim"}
        | _rope([1, 1, 2]),
        "vision_config": _QWEN_TOWER | {"fullatt_block_indexes": [0]},
        **_QWEN_IDS,
    },
    "qwen3_vl": {
        "text_config": _TEXT | _rope([2, 1, 1], mrope_interleaved=True),
        "vision_config": _QWEN_TOWER
        | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        **_QWEN_IDS,
    },
    "qwen3_vl_moe": {
        "text_config": _TEXT | _rope([2, 1, 1], mrope_interleaved=True) | _EXPERTS,
        "vision_config": _QWEN_TOWER
        | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        **_QWEN_IDS,
    },
    "qwen3_5": {
        "text_config": _TEXT
        | _rope([1, 1, 0], mrope_interleaved=True, partial_rotary_factor=0.5)
        | {
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        "vision_config": _QWEN_TOWER | {"num_position_embeddings": 16},
        **_QWEN_IDS,
    },
}
"""Settings of transformers' config classes, by type of model."""
CONFIGS["qwen3_5_moe"] = CONFIGS["qwen3_5"] | {
    "text_config": {
        **{k: v for k, v in CONFIGS["qwen3_5"]["text_config"].items() if k != "intermediate_size"},
        **_EXPERTS,
        "shared_expert_intermediate_size": 12,
    }
}


def torch_model(kind: str, **changes: Any) -> Any:
    """A model with random weights, float32; needs torch and transformers."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[kind](**CONFIGS[kind] | changes)
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # norms are one and biases zero otherwise, which would hide a mistake
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def save_tokenizer(directory: Path, **named: str) -> None:
    """Write a tokenizer whose tokens are ``t0`` to ``t63``, others by ``named``: id after ``t``,
    then the token's text."""
    words = {named.get(f"t{number}", f"t{number}"): number for number in range(VOCABULARY)}
    begin, end, unknown = (named.get(name, name) for name in ("t1", "t2", "t0"))
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=unknown))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(named.values()))
    backend.save(str(directory / "tokenizer.json"))
    special = {"bos_token": begin, "eos_token": end, "unk_token": unknown}
    (directory / "tokenizer_config.json").write_text(json.dumps(special))
