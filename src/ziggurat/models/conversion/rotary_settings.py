"""Rotary settings in a Hugging Face ``config.json``, read and written."""

from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.config_keys import HARMLESS_OF_ROPE, rope_keys
from ziggurat.models.conversion.hf_config import HFConfig
from ziggurat.nn.rope import (
    LinearScaling,
    Llama3Scaling,
    NoScaling,
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
}
"""Types of scaling that are implemented, each with the numbers that it takes; the other keys that
transformers knows mean nothing to it."""
NEEDED = {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
"""Numbers that must be there."""


def read_rope(hf: HFConfig, max_sequence_length: int) -> RopeConfig:
    """Rotary settings from ``rope_parameters`` (transformers 5) or ``rope_theta`` with
    ``rope_scaling`` (transformers 4).

    Raises:
        ModelError: a type or a key that is not implemented, or the two forms disagree.
    """
    theta, original = hf.get("rope_theta"), hf.given("original_max_position_embeddings")
    part = hf.given("partial_rotary_factor")
    forms = [form for key in ("rope_scaling", "rope_parameters") if (form := hf.given(key))]
    found = [
        rope_of(form, theta, max_sequence_length, original, part)
        for form in forms or [hf.get("rope_parameters", {})]
    ]
    if found[0] != found[-1]:
        raise ModelError(
            "config.json: rope_scaling", found="other settings than in rope_parameters",
            expected="the same, or one of the two",
        )  # fmt: skip
    return found[0]


def rope_of(
    values: Any, theta: Any, length: Any, original: Any = None, part: Any = None
) -> RopeConfig:
    """One dictionary of rotary settings.

    Args:
        values: the dictionary.
        theta: the base, where the dictionary has none.
        length: the longest sequence, where the dictionary does not say which it was before scaling.
        original: the length before scaling by the config itself, which goes before the dictionary.
        part: the share of channels that rotate, where the dictionary does not say.

    Raises:
        ModelError: a type or a key that is not implemented, or a value that is no number.
    """
    if not isinstance(values, Mapping):
        raise ModelError("config.json: rope settings", found=repr(values), expected="a table")
    kind = values.get("rope_type") or values.get("type") or "default"
    if not isinstance(kind, str) or kind not in TYPES:
        raise ModelError(
            "config.json: rope_type", found=repr(kind), expected="default, linear, llama3 or yarn"
        )
    # null is absent, but for this one, which transformers then takes for false
    values = {k: v for k, v in values.items() if v is not None or k == "truncate"}
    if values.get("partial_rotary_factor", 1.0 if part is None else part) != 1.0:
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
    return NoScaling()


def hf_rope(rope: RopeConfig) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling`` as transformers 4 and 5 both read them."""
    return {"rope_theta": rope.theta, "rope_scaling": _hf_scaling(rope)}


def hf_rope_parameters(rope: RopeConfig) -> dict[str, Any]:
    """An entry of ``rope_parameters`` as transformers 5 has it."""
    return {"rope_type": "default", "rope_theta": rope.theta} | (_hf_scaling(rope) or {})


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
    return scaling
