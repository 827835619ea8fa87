"""Keys of a published ``config.json``: what transformers and diffusers take an absent key for, and
which keys change no result of a forward pass.

``config_keys.json`` is written by ``scripts/record_config_keys.py``, which asks the libraries' own
classes and code; ``make check`` compares.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any


@dataclasses.dataclass(frozen=True)
class RecordedKeys:
    """Config keys that a library knows for one type of model."""

    classes: Mapping[str, str]
    """The model classes of this type, each with its task."""
    aliases: Mapping[str, str]
    """Other names of keys."""
    defaults: Mapping[str, Any]
    """Every key that the class takes or the library's code reads, with its default."""


@functools.cache
def _file() -> dict[str, Any]:
    text = (
        resources.files("ziggurat.models.conversion")
        .joinpath("config_keys.json")
        .read_text("utf-8")
    )
    return json.loads(text)


@functools.cache
def recorded(model_type: str) -> RecordedKeys:
    """The record of a type of model, or of a class of diffusers; empty where there is none."""
    entry = _file()["types"].get(model_type, {"classes": {}, "aliases": {}, "keys": {}})
    return RecordedKeys(entry["classes"], entry["aliases"], entry["keys"])


@functools.cache
def recorded_classes() -> Mapping[str, str]:
    """Model types by the names of their classes in transformers."""
    return {name: kind for kind, entry in _file()["types"].items() for name in entry["classes"]}


@functools.cache
def rope_keys() -> frozenset[str]:
    """Keys of transformers' ``rope_parameters``, whatever their type."""
    return frozenset(_file()["rope"])


HARMLESS: Mapping[str, str] = {
    "_class_name": "bookkeeping",
    "_diffusers_version": "bookkeeping",
    "architectures": "bookkeeping",
    "auto_map": "bookkeeping: where the publisher's own code is",
    "finetuning_task": "bookkeeping",
    "is_llama_config": "bookkeeping",
    "model_type": "bookkeeping",
    "name_or_path": "bookkeeping",
    "tokenizer_class": "bookkeeping",
    "tokenizer_file": "bookkeeping",
    "transformers.js_config": "bookkeeping",
    "transformers_version": "bookkeeping",
    # how to compute, not what
    "attn_implementation": "a choice of kernel",
    "cache_implementation": "a choice of cache",
    "chunk_size_feed_forward": "the same result in pieces",
    "deterministic_flash_attn": "a choice of kernel",
    "dtype": "the type that weights are stored in",
    "ep_size": "a layout over devices",
    "experts_implementation": "a choice of kernel",
    "flash_attention": "a choice of kernel",
    "flash_attn": "a choice of kernel",
    "output_past": "use_cache, by its name of 2019",
    "pretraining_tp": "a layout over devices",
    "reorder_and_upcast_attn": "scores and softmax are float32 here in any case",
    "return_dict": "the form of Python's result",
    "tie_last_hidden_states": "which states Python's result lists",
    "torch_dtype": "the type that weights are stored in",
    "torchscript": "the form of Python's result",
    "use_bfloat16": "the type to compute in, of TPUs in 2020",
    "use_cache": "whether keys and values are kept",
    "use_flash_attention": "a choice of kernel",
    "use_flash_attention_2": "a choice of kernel",
    "use_flash_attn": "a choice of kernel",
    "use_flash_attn_2": "a choice of kernel",
    "use_return_dict": "the form of Python's result",
    "use_sdpa": "a choice of kernel",
    "use_xformers": "a choice of kernel",
    # training
    "attention_dropout": "dropout, in training only",
    "attention_probs_dropout_prob": "dropout, in training only",
    "attn_pdrop": "dropout, in training only",
    "aux_loss_alpha": "a weight of the loss",
    "cls_dropout": "dropout, in training only",
    "drop_path_rate": "dropout, in training only",
    "dropout": "dropout, in training only",
    "embd_pdrop": "dropout, in training only",
    "embedding_dropout": "dropout, in training only",
    "gradient_checkpointing": "memory of training",
    "hidden_dropout": "dropout, in training only",
    "hidden_dropout_prob": "dropout, in training only",
    "initializer_cutoff_factor": "initial weights",
    "initializer_factor": "initial weights",
    "layerdrop": "layers left out, in training only",
    "layerscale_value": "initial weights",
    "loss_type": "the loss",
    "mlp_dropout": "dropout, in training only",
    "neftune_noise_alpha": "noise in training",
    "output_router_logits": "whether the router's loss is added",
    "pooler_dropout": "dropout, in training only",
    "qa_dropout": "dropout, in training only",
    "resid_pdrop": "dropout, in training only",
    "residual_dropout": "dropout, in training only",
    "router_aux_loss_coef": "a weight of the loss",
    "router_jitter_noise": "noise in training",
    "router_z_loss_coef": "a weight of the loss",
    "seq_aux": "how the router's loss is taken",
    "seq_classif_dropout": "dropout, in training only",
    "sparse_pred_ignore_index": "the loss",
    "sparse_prediction": "the loss",
    "use_neftune": "noise in training",
    # heads that a language model or encoder has not
    "classifier_dropout": "a classifier's",
    "id2label": "a classifier's",
    "is_decoder": "decoders are decoders; encoders look at it",
    "is_encoder_decoder": "written into every config by old versions",
    "label2id": "a classifier's",
    "mtp_hidden_states_first": "of layers that predict further tokens, which are not read",
    "n_special": "of the first GPT, written by early versions",
    "num_labels": "a classifier's",
    "num_mtp_layers": "layers that predict further tokens, which are not read",
    "num_nextn_predict_layers": "layers that predict further tokens, which are not read",
    "predict_special_tokens": "of the first GPT, written by early versions",
    "problem_type": "a classifier's",
    "summary_activation": "a classifier's",
    "summary_first_dropout": "a classifier's",
    "summary_last_dropout": "a classifier's",
    "summary_proj_to_labels": "a classifier's",
    "summary_type": "a classifier's",
    "summary_use_proj": "a classifier's",
    "token_classification_bias": "a classifier's",
    # lengths that no layer knows
    "initial_context_length": "the length before scaling, which the rotary settings hold",
    "max_sequence_length": "max_position_embeddings, by its name of early 2023",
    "model_max_length": "the tokenizer's",
    "n_ctx": "n_positions, by its name of 2019",
    "seq_length": "the length of training",
    "tokenizer_model_max_length": "the tokenizer's",
    # of sentence-transformers, read with its other files
    "sbert_ce_default_activation_function": "how a score is made of a logit",
    "sentence_transformers": "how a score is made of a logit",
    # generation, beyond what GenerationConfig lists
    "max_new_tokens": "generation",
    "cls_token_id": "the tokenizer's",
    "eod_token_id": "the tokenizer's",
    "prefix": "generation",
    "sep_token_id": "the tokenizer's",
    "task_specific_params": "generation",
    "unk_token_id": "the tokenizer's",
}
"""Keys of a published config that change no result of a forward pass, whatever the family and the
value, and why."""
HARMLESS_BEGINNINGS = ("_", "unsloth_")
"""Beginnings of such keys: private ones, and notes of the tools that a model went through."""
HARMLESS_OF_ROPE = frozenset({"finetuned", "mrope_interleaved"})
"""Harmless keys inside rotary settings: notes on how a model was made, and the order of axes of
positions, which the architecture fixes."""


def is_harmless(key: str) -> bool:
    """Whether a key changes no result, whatever its value.

    >>> is_harmless("attention_dropout"), is_harmless("top_p"), is_harmless("sliding_window")
    (True, True, False)
    """
    known = key in HARMLESS or key in _generation()
    return known or key.startswith(HARMLESS_BEGINNINGS)


def only_trains(key: str) -> bool:
    """Whether a key is dropout or noise in training, which training here does without."""
    return HARMLESS.get(key, "").endswith(("in training only", "noise in training"))


@functools.cache
def _generation() -> frozenset[str]:
    """Keys of transformers' ``GenerationConfig``, which old configs hold."""
    return frozenset(_file()["generation"])
