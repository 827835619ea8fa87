"""Configs as they are published: each is read, shrunk to a tiny model and compared with
transformers, or refused with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.oracle import config_parity

from ziggurat.core.errors import ModelError
from ziggurat.models import family_for_config
from ziggurat.models.conversion.config_keys import recorded
from ziggurat.models.conversion.text_part import MULTIMODAL_TYPES

TABLE = json.loads(Path(config_parity.__file__).with_name("published_configs.json").read_text())
DOWNLOADED = json.loads(Path(config_parity.__file__).with_name("most_downloaded.json").read_text())
MODELS = {entry["name"]: entry for entry in TABLE["models"]}
READ = [name for name, entry in MODELS.items() if "refused" not in entry]
TINY: dict[str, Any] = {
    "vocab_size": config_parity.VOCABULARY,
    "intermediate_size": 24,
    "ffn_dim": 24,
    "moe_intermediate_size": 16,
    "head_dim": 8,
    "attention_head_dim": 8,
    "num_kv_heads": 1,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "experts_per_token": 2,
    "n_group": 2,
    "topk_group": 1,
    "kv_lora_rank": 12,
    "q_lora_rank": 10,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "first_k_dense_replace": 1,
    "n_positions": 32,
    "sliding_window": 5,
    "sliding_window_size": 5,
    "sliding_window_pattern": 2,
    "max_window_layers": 1,
    "query_pre_attn_scalar": 16,
    "pad_token_id": 0,
    "state_size": 6,
}
"""Dimensions of the tiny models, for keys that have a value."""
LAYERS = 2


def config(name: str) -> dict[str, Any]:
    """A config as published."""
    entry = MODELS[name]
    values = TABLE["bases"][entry["base"]] | entry.get("config", {})
    return {key: value for key, value in values.items() if key not in entry.get("absent", ())}


def shrunk(values: dict[str, Any]) -> dict[str, Any]:
    """The same switches in a tiny model: as many layers as show every kind, heads in about the same
    groups, and the length before rotary scaling so short that the input is longer."""
    small = {k: TINY[k] if k in TINY and value else value for k, value in values.items()}
    if values["model_type"] == "mamba2":
        groups = min(values["n_groups"], 2)
        sizes = {"hidden_size": 16, "num_heads": 4, "n_groups": groups, "num_hidden_layers": LAYERS}
        return small | sizes
    groups = values.get("n_head") or values["num_attention_heads"]
    groups //= values.get("num_key_value_heads") or groups
    kv_heads = 1 if values.get("num_key_value_heads") == 1 else 2
    heads = kv_heads * min(groups, 3)
    for key in ("num_attention_heads", "n_head"):
        if key in small:
            small[key] = heads
    if "num_key_value_heads" in small:
        latent = "kv_lora_rank" in small
        small["num_key_value_heads"] = heads if latent else heads // min(groups, 3)
    for key in ("hidden_size", "n_embd", "word_embed_proj_dim"):
        if key in small:
            small[key] = 8 * heads
    for key in ("num_hidden_layers", "n_layer"):
        if key in small:
            small[key] = LAYERS
    if "layer_types" in small:
        small["layer_types"] = values["layer_types"][-LAYERS:]
    if small.get("n_group") and values["n_group"] == 1:
        small["n_group"] = 1
    if (small.get("rope_scaling") or {}).get("original_max_position_embeddings"):
        small["rope_scaling"] = small["rope_scaling"] | {"original_max_position_embeddings": 8}
    return small


def is_read(architecture: str, model_type: str) -> bool:
    """Whether checkpoints of an architecture are read; of images and text, their text at least."""
    if model_type in MULTIMODAL_TYPES:
        return MULTIMODAL_TYPES[model_type].architecture == architecture
    try:
        return architecture in recorded(model_type).classes
    except ModelError:
        return False


@pytest.mark.parametrize(
    ("kind", "least", "unread"),
    [
        ("text generation", 16, {"deepseek_v4"}),
        ("encoders", 8, set()),
    ],
)
def test_what_is_downloaded_most_is_read(kind, least, unread):
    rows = DOWNLOADED[kind]
    assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)
    found = {row[0]: is_read(*row[2:]) for row in rows}
    assert sum(found.values()) >= least
    assert {row[3] for row in rows if not found[row[0]]} == unread


def test_there_are_a_hundred():
    assert len(MODELS) == len(TABLE["models"]) >= 100
    assert len(READ) >= 80


@pytest.mark.parametrize("name", [name for name in MODELS if name not in READ])
def test_refused_with_the_reason(name):
    found = config_parity.parsed(config(name))
    assert isinstance(found, config_parity.Refused)
    assert MODELS[name]["refused"] in found
    assert "\n" not in found


@pytest.mark.parametrize("name", READ)
def test_read_as_it_is_published(name):
    values = config(name)
    found = family_for_config(values).from_hf(values)
    assert found.d_model == values.get("hidden_size", values.get("n_embd"))


@pytest.mark.parity
@pytest.mark.parametrize("name", READ)
def test_tiny_model_of_it_equals_transformers(name):
    pytest.importorskip("transformers")
    values = shrunk(config(name))
    theirs = config_parity.Theirs(values)
    ours = config_parity.our_logits(values, theirs)
    assert not isinstance(ours, config_parity.Refused), ours
    assert config_parity.difference(ours, theirs.logits) < config_parity.TOLERANCE
