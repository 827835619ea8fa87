"""Reading a Hugging Face ``config.json``: every key is used, known to be harmless, or refused."""

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from ziggurat.core import config as config_
from ziggurat.core.errors import ConfigError, ModelError
from ziggurat.nn.mlp import Activation
from ziggurat.nn.rope import (
    LinearScaling,
    Llama3Scaling,
    NoScaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)

_log = logging.getLogger(__name__)
T = TypeVar("T")

HARMLESS = frozenset(
    {
        "architectures",
        "auto_map",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "is_encoder_decoder",
        "is_llama_config",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "tokenizer_class",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "use_cache",
    }
)
"""Keys that change no result of a causal forward pass."""

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "tanh": "tanh",
}


class HFConfig:
    """A ``config.json`` that remembers which keys were asked for."""

    def __init__(self, values: Mapping[str, Any]):
        self._values = dict(values)
        self._used: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """A key's value; ``default`` where it is absent or null."""
        self._used.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """A key that must be there."""
        if self.get(key) is None:
            raise ModelError(f"config.json: {key}", found="absent", expected="a value")
        return self._values[key]

    def whole(self, key: str, default: int | None = None) -> int:
        """A key that holds a whole number, needed before the config as a whole is checked."""
        value = self.need(key) if default is None else self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ModelError(f"config.json: {key}", found=repr(value), expected="a whole number")
        return value

    def refuse_unless(self, key: str, accepted: tuple[Any, ...], why: str = "") -> None:
        """Refuse any value of ``key`` other than absent, null or one of ``accepted``."""
        value = self.get(key)
        if value is not None and value not in accepted:
            raise ModelError(
                f"config.json: {key}",
                found=repr(value),
                expected=" or ".join(repr(entry) for entry in accepted),
                fix=why or "this switch is not implemented for the family",
            )

    def finish(self) -> None:
        """Refuse keys that nobody asked for, unless they are harmless, private or off."""
        for key, value in self._values.items():
            known = key in self._used or key in HARMLESS or key.startswith("_")
            if not known and value not in (None, False, 0, 0.0, [], {}, ""):
                raise ModelError(
                    f"config.json: {key}",
                    found=repr(value),
                    expected="only keys that this family implements",
                    fix="remove the key if it has no effect on the model",
                )


def note_dropout(config: HFConfig, *keys: str) -> None:
    """Accept rates of dropout, which published models keep from their training, and say that
    training here has none."""
    rates = {key: config.get(key) for key in keys}
    if any(rates.values()):
        text = ", ".join(f"{key} {rate}" for key, rate in rates.items() if rate)
        _log.info("config.json: %s: dropout is not applied, should this model be trained", text)


def checked(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """A config node from values that a file gave, of whatever type and size they are.

    Raises:
        ModelError: a value is of another type or breaks a rule; all such are named.
    """
    try:
        return config_.from_plain(cls, config_.to_plain(values), source)
    except ConfigError as error:
        raise ModelError(str(error)) from None


def activation(config: HFConfig, key: str = "hidden_act", default: str = "silu") -> Activation:
    """The activation function by transformers' name."""
    name = config.get(key, default)
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ModelError(f"config.json: {key}", found=repr(name), expected=f"one of {known}")
    return ACTIVATIONS[name]


def hf_activation(name: Activation) -> str:
    """The reverse of :func:`activation`."""
    return "gelu_pytorch_tanh" if name == "gelu_tanh" else name


def rope(config: HFConfig, max_sequence_length: int, default_theta: float = 10000.0) -> RopeConfig:
    """Rotary settings from ``rope_parameters`` (transformers 5) or ``rope_theta`` with
    ``rope_scaling`` (transformers 4)."""
    values = {**config.get("rope_scaling", {}), **config.get("rope_parameters", {})}
    theta = values.pop("rope_theta", None) or config.get("rope_theta", default_theta)
    config.get("rope_theta")
    kind = values.pop("rope_type", None) or values.pop("type", "default")
    values.pop("type", None)
    if values.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError("config.json: partial_rotary_factor", found="not 1", expected="1")
    values = {key: value for key, value in values.items() if value is not None}
    original = values.pop("original_max_position_embeddings", None) or max_sequence_length
    scaling: RopeScaling
    try:
        theta = float(theta)
        if kind == "default":
            scaling = NoScaling()
            values = {}
        elif kind == "linear":
            scaling = LinearScaling(factor=float(values.pop("factor")))
        elif kind == "llama3":
            scaling = Llama3Scaling(original_length=original, **_floats(values))
            values = {}
        elif kind == "yarn":
            factor = values.pop("factor", None) or max_sequence_length / original
            truncate = values.pop("truncate", True)
            lengths = {"original_length": original, "truncate": truncate}
            scaling = YarnScaling(factor=float(factor), **lengths, **_floats(values))
            values = {}
        else:
            raise ModelError(
                "config.json: rope_type",
                found=repr(kind),
                expected="default, linear, llama3 or yarn",
            )
    except KeyError as error:
        raise ModelError(
            f"config.json: rope settings of type {kind}", found=f"no {error}", expected="a value"
        ) from None
    except (TypeError, ValueError) as error:
        raise ModelError(f"config.json: rope settings of type {kind}", found=error) from None
    if values:
        raise ModelError("config.json: rope settings", found=f"{sorted(values)}", expected="none")
    return RopeConfig(theta=theta, scaling=scaling)


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


def _floats(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float(value) for key, value in values.items()}
