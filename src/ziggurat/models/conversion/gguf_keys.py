"""Metadata keys of GGUF files: each is read, without effect on a language model's forward pass, or
refused by name unless its value is neutral.

Names are those of the ``gguf`` package's ``Keys``; ``{arch}`` stands for ``general.architecture``,
other braces for any text. What llama.cpp makes of a key decides where it stands here:
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-model.cpp.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ziggurat.core.errors import ModelError

_log = logging.getLogger(__name__)

READ = frozenset(
    {
        "general.architecture",
        "{arch}.vocab_size",
        "{arch}.context_length",
        "{arch}.embedding_length",
        "{arch}.block_count",
        "{arch}.feed_forward_length",
        "{arch}.attention.head_count",
        "{arch}.attention.head_count_kv",
        "{arch}.attention.key_length",
        "{arch}.attention.value_length",
        "{arch}.attention.layer_norm_rms_epsilon",
        "{arch}.attention.sliding_window",
        "{arch}.attention.scale",
        "{arch}.rope.dimension_count",
        "{arch}.rope.freq_base",
        "{arch}.rope.scaling.type",
        "{arch}.rope.scaling.factor",
        "{arch}.rope.scale_linear",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.scores",
        "tokenizer.ggml.merges",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.eot_token_id",
        "tokenizer.ggml.eom_token_id",
        "tokenizer.ggml.unknown_token_id",
        "tokenizer.ggml.padding_token_id",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_eos_token",
        "tokenizer.ggml.add_sep_token",
        "tokenizer.ggml.seperator_token_id",
        "tokenizer.ggml.add_space_prefix",
        "tokenizer.ggml.remove_extra_whitespaces",
        "tokenizer.ggml.precompiled_charsmap",
        "tokenizer.ggml.normalizer.lowercase",
        "tokenizer.chat_template",
        "tokenizer.chat_template.{name}",
        "general.sampling.temp",
        "general.sampling.top_k",
        "general.sampling.top_p",
        "general.sampling.min_p",
        "general.sampling.penalty_repeat",
    }
)
"""Keys that decide the config, the tokenizer or the sampling defaults."""

_ABOUT = "says where the file is from"
_INFILL = "marks gaps to fill, which a prompt may write itself"
INERT: Mapping[str, str] = {
    "general.quantization_version": "the tensors say their types",
    "general.alignment": "the reader's",
    "general.file_type": "the tensors say their types",
    "general.{about}": _ABOUT,
    "general.sampling.{sampler}": "a sampler of llama.cpp's that is not offered here",
    "quantize.{about}": _ABOUT,
    "imatrix.{about}": _ABOUT,
    "split.no": "of the parts, which are read as one file",
    "split.count": "of the parts",
    "split.tensors.count": "of the parts",
    "{arch}.tensor_data_layout": "the order of rows is that of every converter",
    "{arch}.pooling_type": "of vectors of texts, which a language model does not give",
    "{arch}.embedding_length_out": "of vectors of texts",
    "{arch}.attention.layer_norm_epsilon": "of LayerNorm; norms here are RMSNorm",
    "{arch}.rope.scaling.original_context_length": "of yarn, which is refused",
    "{arch}.rope.scaling.finetuned": "says how the model was trained",
    "{arch}.rope.scaling.yarn_{setting}": "of yarn, which is refused",
    "{arch}.attention.key_length_mla": "of latent attention, whose ranks are refused",
    "{arch}.attention.value_length_mla": "of latent attention, whose ranks are refused",
    "{arch}.expert_weights_scale": "of experts, whose count is refused",
    "{arch}.expert_weights_norm": "of experts, whose count is refused",
    "{arch}.expert_gating_func": "of experts, whose count is refused",
    "{arch}.expert_feed_forward_length": "of experts, whose count is refused",
    "tokenizer.ggml.token_type_count": "counts types",
    "tokenizer.ggml.mask_token_id": "of encoders",
    "tokenizer.ggml.cls_token_id": "of encoders",
    "tokenizer.ggml.fim_{part}_token_id": _INFILL,
    "tokenizer.ggml.prefix_token_id": _INFILL,
    "tokenizer.ggml.suffix_token_id": _INFILL,
    "tokenizer.ggml.middle_token_id": _INFILL,
    "tokenizer.huggingface.json": "repeats the tokenizer",
    "tokenizer.rwkv.world": "of RWKV",
    "tokenizer.chat_templates": "lists the names of templates, which are read",
}
"""Keys without effect here, with the reason. A pattern counts after whole names."""

REFUSED: Mapping[str, tuple[Any, ...]] = {
    "general.type": ("model",),
    "{arch}.attention.causal": (True,),
    "{arch}.logit_scale": (0, 1),
    "{arch}.residual_scale": (0, 1),
    "{arch}.embedding_scale": (0, 1),
    "{arch}.attention.output_scale": (0, 1),
    "{arch}.rope.scaling.attn_factor": (0, 1),
    "{arch}.rope.scaling.yarn_attn_factor": (0, 1),
    "{arch}.rope.scaling.yarn_ext_factor": (0, -1),
    "{arch}.use_parallel_residual": (False,),
    "{arch}.swin_norm": (False,),
}
"""Keys that change what is computed, with the values at which they do not; of others that are not
in a table above the values without effect are false, 0 and nothing."""
_OFF = (False, 0, None, "", "none")
_REASONS = {
    "general.type": "this is no file of a model's weights",
}


def check(metadata: Mapping[str, Any], architecture: str, also: Iterable[str] = ()) -> None:
    """Refuse a file whose metadata asks for what is not computed here.

    Keys that are neither under the architecture's name nor one of the format's own say something to
    another program; they are noted.

    Args:
        metadata: the file's keys and values.
        architecture: what stands before the keys of the model.
        also: keys below it that the family reads beside those of the table.

    Raises:
        ModelError: a key has a value that would change the result; it is named.
    """
    read = {f"{{arch}}.{key}" for key in also}
    for key, value in metadata.items():
        name = key.replace(f"{architecture}.", "{arch}.", 1)
        if name in read:
            continue
        if name in REFUSED or role(name) is None:
            neutral = REFUSED.get(name, _OFF)
            if name not in REFUSED and not _belongs(name):
                _log.info("GGUF metadata %s: not a key of a model, left unread", key)
            elif not all(_is_one_of(one, neutral) for one in _each(value)):
                raise ModelError(
                    f"GGUF metadata {key}",
                    found=_shown(value),
                    expected=f"{neutral[0]!r}, or no such key",
                    fix=_REASONS.get(name, "this switch is not implemented for the family"),
                )


def role(name: str) -> str | None:
    """``read``, the reason why a key has no effect, or None for what is refused or not known.

    >>> role("{arch}.context_length"), role("general.license.link"), role("{arch}.logit_scale")
    ('read', 'says where the file is from', None)
    """
    if name in REFUSED:
        return None
    if _matches(name, READ) is not None:
        return "read"
    found = _matches(name, INERT)
    return None if found is None else INERT[found]


def sampling_defaults(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """``generation_config.json`` of the sampling settings that a file holds."""
    names = {
        "temp": "temperature",
        "top_k": "top_k",
        "top_p": "top_p",
        "min_p": "min_p",
        "penalty_repeat": "repetition_penalty",
    }
    found = {theirs: metadata.get(f"general.sampling.{ours}") for ours, theirs in names.items()}
    return {name: value for name, value in found.items() if value is not None}


def _matches(name: str, patterns: Iterable[str]) -> str | None:
    """The pattern that a name fits; whole names come first, then longer patterns."""
    if name in patterns:
        return name
    for pattern in sorted(patterns, key=len, reverse=True):
        parts = re.split(r"(\{(?!arch\})\w+\})", pattern)
        expression = "".join(".+" if n % 2 else re.escape(part) for n, part in enumerate(parts))
        if len(parts) > 1 and re.fullmatch(expression, name):
            return pattern
    return None


def _belongs(name: str) -> bool:
    """Whether a key speaks of the model: its architecture's, or one of the format's own."""
    return name.startswith(("{arch}.", "adapter.", "clip.", "diffusion.", "xielu."))


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_one_of(value: Any, accepted: tuple[Any, ...]) -> bool:
    return any(value == one for one in accepted)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
