"""Rotary settings in a Hugging Face ``config.json``, read and written."""

import math
from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.config_keys import HARMLESS_OF_ROPE, rope_keys
from ziggurat.models.conversion.hf_config import HFConfig
from ziggurat.nn.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NoScaling,
    NtkScaling,
    ProportionalScaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)

TYPES = {
    "default": frozenset[str](),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset(
        {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
    ),
    "dynamic": frozenset({"factor"}),
    "longrope": frozenset({"factor", "attention_factor"}),
    "proportional": frozenset({"factor"}),
}
"""Types of scaling that are implemented, each with the numbers that it takes; the other keys that
transformers knows mean nothing to it."""
DEFAULT_THETA = 10000.0
"""Base where neither a config nor transformers' class says one."""
ANY_PART = "any"
"""In place of a share of channels: the family reads it itself."""
NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
"""Numbers that must be there."""


def read_rope(
    hf: HFConfig, max_sequence_length: int, partial: bool = False, theta: str = "rope_theta"
) -> RopeConfig:
    """Rotary settings from ``rope_parameters`` (transformers 5) or ``rope_theta`` with
    ``rope_scaling`` (transformers 4).

    Args:
        hf: the config.
        max_sequence_length: the longest sequence.
        partial: whether the family reads :func:`partial_rotary_factor`, which is refused otherwise.
        theta: the family's name of the base, where it stands beside the rotary settings.

    Raises:
        ModelError: a type or a key that is not implemented, or the two forms disagree.
    """
    base, original = hf.get(theta, DEFAULT_THETA), hf.get("original_max_position_embeddings")
    part = ANY_PART if partial else hf.given("partial_rotary_factor")
    found = [rope_of(form, base, max_sequence_length, original, part) for form in _forms(hf)]
    if found[0] != found[-1]:
        raise ModelError(
            "config.json: rope_scaling", found="other settings than in rope_parameters",
            expected="the same, or one of the two",
        )  # fmt: skip
    return found[0]


def partial_rotary_factor(
    hf: HFConfig, default: float = 1.0, key: str = "partial_rotary_factor"
) -> Any:
    """The share of a head's channels that rotate.

    Args:
        hf: the config.
        default: the share where the config does not say.
        key: the family's name of it beside the rotary settings, which go before it.
    """
    beside = hf.get(key, default)
    shares = {form.get("partial_rotary_factor", beside) for form in _forms(hf, {})}
    if len(shares) > 1:
        raise ModelError("config.json: partial_rotary_factor", found=shares, expected="one value")
    return shares.pop()


def read_rotary_dim(hf: HFConfig, head_dim: int, default: float = 1.0) -> int:
    """Channels of a head that rotate, by :func:`partial_rotary_factor`.

    Raises:
        ModelError: the share is no number above 0 and at most 1.
    """
    share = partial_rotary_factor(hf, default)
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if not number or not 0 < share <= 1:
        raise ModelError(
            "config.json: partial_rotary_factor",
            found=repr(share),
            expected="a number above 0 and at most 1",
        )
    return int(head_dim * share)


def _forms(hf: HFConfig, default: Any = None) -> list[Any]:
    """The tables of rotary settings that a config holds, or what stands for an absent one."""
    forms = [form for key in ("rope_scaling", "rope_parameters") if (form := hf.given(key))]
    return forms or [hf.get("rope_parameters", {}) if default is None else default]


def read_ropes_by_reach(
    hf: HFConfig, length: int, local_theta: Any = None
) -> tuple[RopeConfig, RopeConfig]:
    """Rotary settings of layers that see all tokens, and of those that see a window.

    They are nested in ``rope_parameters`` by type of layer (transformers 5), or stand in
    ``rope_theta`` and ``rope_scaling``, of the former, and ``local_theta`` (transformers 4).

    Args:
        hf: the config.
        length: the longest sequence.
        local_theta: base of the latter, where ``rope_parameters`` does not say.

    Raises:
        ModelError: settings are not by type of layer, or are not implemented.
    """
    given = hf.get("rope_parameters")
    nested = {key: given.get(key) or {} for key in ("full_attention", "sliding_attention")}
    extra = sorted(given.keys() - nested.keys())
    if extra:
        raise ModelError(
            "config.json: rope_parameters",
            found=", ".join(extra),
            expected="full_attention and sliding_attention",
        )
    whole = {**nested["full_attention"], **hf.get("rope_scaling", {})}
    # transformers looks for `truncate` beside the two, where it never is
    rounded = {"truncate": True}
    return (
        rope_of(whole | rounded, hf.get("rope_theta"), length),
        rope_of(nested["sliding_attention"] | rounded, local_theta, length),
    )


def read_sections(hf: HFConfig) -> tuple[int, ...] | None:
    """``mrope_section`` of the rotary settings: frequencies by axis of the position, if given."""
    for form in _forms(hf, {}):
        if form.get("mrope_section") is not None:
            return tuple(form["mrope_section"])
    return None


def rope_of(
    values: Any, theta: Any, length: Any, original: Any = None, part: Any = None
) -> RopeConfig:
    """One dictionary of rotary settings.

    Args:
        values: the dictionary.
        theta: the base, where the dictionary has none.
        length: the longest sequence, where the dictionary does not say which it was before scaling.
        original: the length before scaling by the config itself, which goes before the dictionary.
        part: the share of channels that rotate, where the dictionary does not say; it must be 1,
            unless this is :data:`ANY_PART`.

    Raises:
        ModelError: a type or a key that is not implemented, or a value that is no number.
    """
    if not isinstance(values, Mapping):
        raise ModelError("config.json: rope settings", found=repr(values), expected="a table")
    kind = values.get("rope_type") or values.get("type") or "default"
    if not isinstance(kind, str) or kind not in TYPES:
        raise ModelError(
            "config.json: rope_type", found=repr(kind), expected="one of " + ", ".join(TYPES)
        )
    # null is absent, but for this one, which transformers then takes for false
    values = {k: v for k, v in values.items() if v is not None or k == "truncate"}
    share = values.get("partial_rotary_factor", 1.0 if part is None else part)
    if kind == "proportional" and part == ANY_PART:  # the share would be taken twice
        raise ModelError("config.json: rope_type", found=repr(kind), expected="another here")
    if kind != "proportional" and part != ANY_PART and share != 1.0:
        raise ModelError("config.json: partial_rotary_factor", found="not 1", expected="1")
    unknown = sorted(values.keys() - rope_keys() - HARMLESS_OF_ROPE - {"type"})
    if unknown:
        raise ModelError(
            f"config.json: rope settings of type {kind}",
            found=", ".join(repr(key) for key in unknown),
            expected="only keys that transformers knows",
            fix="remove the key if it has no effect on the model",
        )
    original = original or values.get("original_max_position_embeddings") or length
    try:
        numbers: dict[str, Any] = {
            key: float(values[key]) for key in sorted(TYPES[kind] & values.keys())
        }
        theta = float(values.get("rope_theta", theta))
        if not theta > 0:
            raise ValueError(f"rope_theta {theta}; expected a positive number")
        _need(kind, numbers)
        return RopeConfig(theta=theta, scaling=_scaling(kind, numbers, length, original, values))
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(f"config.json: rope settings of type {kind}", found=error) from None


def _need(kind: str, numbers: Mapping[str, float]) -> None:
    missing = [key for key in NEEDED.get(kind, ()) if key not in numbers]
    if missing:
        raise ModelError(
            f"config.json: rope settings of type {kind}",
            found=f"no {missing[0]}",
            expected="a value",
        )


def _scaling(
    kind: str, numbers: dict[str, Any], length: Any, original: Any, values: Mapping[str, Any]
) -> RopeScaling:
    if kind == "linear":
        return LinearScaling(**numbers)
    if kind == "llama3":
        return Llama3Scaling(original_length=original, **numbers)
    if kind == "yarn":
        numbers.setdefault("factor", length / original)
        kept = {k: v for k, v in numbers.items() if v or k not in ("beta_fast", "beta_slow")}
        truncate = bool(values.get("truncate", True))
        return YarnScaling(original_length=original, truncate=truncate, **kept)
    if kind == "dynamic":
        # transformers counts from the longest sequence, whatever the original length is said to be
        return DynamicScaling(original_length=length, **numbers)
    if kind == "longrope":
        return _longrope(numbers, length, original, values)
    if kind == "proportional":
        return ProportionalScaling(share=values.get("partial_rotary_factor", 1.0), **numbers)
    return NoScaling()


def _longrope(
    numbers: Mapping[str, float], length: Any, original: Any, values: Mapping[str, Any]
) -> LongRopeScaling:
    """The factor on cos and sin follows, where it is not given, from how much longer the context
    becomes: https://arxiv.org/abs/2402.13753, section 3.3."""
    factors = {key: values.get(key) for key in ("short_factor", "long_factor")}
    for key, entries in factors.items():
        if not isinstance(entries, list) or not all(_is_number(entry) for entry in entries):
            raise ValueError(f"{key} {entries}; expected a list of numbers")
    growth, attention = numbers.get("factor", length / original), numbers.get("attention_factor")
    if attention is None:
        log = math.log(growth) / math.log(original) if growth > 1 else 0.0
        attention = math.sqrt(1 + log)
    short, long = (tuple(map(float, entries)) for entries in factors.values() if entries)
    return LongRopeScaling(
        short_factor=short, long_factor=long, original_length=original, attention_factor=attention
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def hf_rope(rope: RopeConfig, part: float | None = None) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` as transformers 4 and 5 both read them; with dynamic
    scaling the length from which it counts too.

    Args:
        rope: the settings.
        part: ``partial_rotary_factor``, of architectures that have it.
    """
    values: dict[str, Any] = {} if part is None else {"partial_rotary_factor": part}
    if rope.sections:  # architectures that only transformers 5 knows
        values = {"rope_parameters": hf_rope_parameters(rope) | values}
    else:
        values |= {"rope_theta": rope.theta, "rope_scaling": _hf_scaling(rope)}
    if isinstance(rope.scaling, DynamicScaling):
        values["max_position_embeddings"] = rope.scaling.original_length
    return values


def hf_rope_parameters(rope: RopeConfig) -> dict[str, Any]:
    """An entry of ``rope_parameters`` as transformers 5 has it."""
    values = {"rope_type": "default", "rope_theta": rope.theta} | (_hf_scaling(rope) or {})
    if rope.sections:
        sections = {"mrope_section": list(rope.sections), "mrope_interleaved": rope.interleaved}
        values |= sections
    return values


def hf_ropes_by_reach(whole: RopeConfig, local: RopeConfig) -> dict[str, Any]:
    """The reverse of :func:`read_ropes_by_reach`."""
    return {
        "rope_parameters": {
            "full_attention": hf_rope_parameters(whole),
            "sliding_attention": hf_rope_parameters(local),
        }
    }


def _hf_scaling(rope: RopeConfig) -> dict[str, Any] | None:
    s = rope.scaling
    scaling: dict[str, Any] | None = None
    if isinstance(s, LinearScaling):
        scaling = {"rope_type": "linear", "factor": s.factor}
    elif isinstance(s, Llama3Scaling):
        scaling = {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_length,
        }
    elif isinstance(s, YarnScaling):
        scaling = {
            "rope_type": "yarn",
            "factor": s.factor,
            "original_max_position_embeddings": s.original_length,
            "beta_fast": s.beta_fast,
            "beta_slow": s.beta_slow,
            "truncate": s.truncate,
        }
        optional = ("attention_factor", "mscale", "mscale_all_dim")
        scaling |= {key: getattr(s, key) for key in optional if getattr(s, key) is not None}
    elif isinstance(s, LongRopeScaling):
        scaling = {
            "rope_type": "longrope",
            "short_factor": list(s.short_factor),
            "long_factor": list(s.long_factor),
            "original_max_position_embeddings": s.original_length,
            "attention_factor": s.attention_factor,
        }
    elif isinstance(s, DynamicScaling):
        scaling = {"rope_type": "dynamic", "factor": s.factor}
    elif isinstance(s, ProportionalScaling):
        scaling = {
            "rope_type": "proportional",
            "partial_rotary_factor": s.share,
            "factor": s.factor,
        }
    elif isinstance(s, NtkScaling):
        scaling = {"rope_type": "dynamic", "factor": 1.0, "alpha": s.alpha}
    return scaling
