"""Reading a published ``config.json``: every key is honoured, known to change nothing, or refused.

One rule for all families, in :meth:`HFConfig.finish`. A key that the family asked for is honoured.
Any other must be harmless (:data:`ziggurat.models.conversion.config_keys.HARMLESS`) or stand at the
default of the library's own class, by which the family is made; a key that the library neither has
nor reads must be off. What an absent key means is that library's default too.
"""

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from ziggurat.core import config as config_
from ziggurat.core.errors import ConfigError, ModelError
from ziggurat.models.conversion.architectures import model_type_of
from ziggurat.models.conversion.config_keys import is_harmless, only_trains, recorded
from ziggurat.nn.mlp import Activation

_log = logging.getLogger(__name__)
T = TypeVar("T")

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


REASONS = {
    "attention_chunk_size": "attention in chunks is not implemented",
    "head_dim": "heads here have hidden_size / num_attention_heads channels",
    "is_causal": "attention here is causal; a decoder that embeds texts in both directions is read "
    "beside sentence-transformers' modules.json",
    "original_max_position_embeddings": "only rotary scalings of a kind that needs it have it",
    "partial_rotary_factor": "all channels of a head rotate here",
    "per_layer_config": "layers that differ in other keys are not implemented",
    "quantization_config": "quantised weights are imported with ziggurat import hf",
    "sliding_window": "transformers applies it to this architecture's cache alone, so only while "
    "decoding",
}
"""Reasons that keys are refused with another value than their default, where there is more to
say."""
NULLABLE = {
    "attn_logit_softcapping",
    "bias",
    "final_logit_softcapping",
    "multi_query",
    "new_decoder_architecture",
    "num_key_value_heads",
    "parallel_attn",
    "q_lora_rank",
    "sliding_window",
    "use_qk_norm",
}
"""Keys that have a default and another meaning where they are null."""
NULL_IS_ABSENT = {"rope_parameters"}
"""Keys that transformers takes for absent where they are null; GPT-OSS is YaRN then too."""
OFF = (None, False, 0, 0.0, [], {}, "")
"""Values by which a key asks for nothing."""


class HFConfig:
    """A ``config.json`` that remembers which keys were asked for.

    A null switch that is off by default is off.

    Args:
        values: its content.
        model_type: transformers' type of model, or the class of diffusers; default: what the values
            say.

    Raises:
        ModelError: the type is unknown, or a key and its other name disagree.
    """

    def __init__(self, values: Mapping[str, Any], model_type: str | None = None):
        self.model_type = model_type_of(values) if model_type is None else model_type
        record = recorded(self.model_type)
        self._defaults = record.defaults
        self._values: dict[str, Any] = {}
        for key, value in values.items():
            own = record.aliases.get(key, key)
            if value is None and self._defaults.get(own) is False:
                value = False  # their code asks whether a switch is true
            if own in self._values and self._values[own] != value:
                raise ModelError(
                    f"config.json: {key}",
                    found=f"{value!r}, and {self._values[own]!r} by its other name",
                    expected="one value",
                )
            self._values[own] = value
        self._used: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """A key's value; where it is absent, what the library takes it for; ``default`` where
        neither says anything.

        Raises:
            ModelError: it is null, which means nothing to the library: what code makes of a null
                switch is not what it makes of an absent one.
        """
        self._used.add(key)
        usual = self._defaults.get(key)
        value = self._values.get(key, usual)
        if value is None and key in NULL_IS_ABSENT:
            value = usual
        if value is None and usual is not None and key not in NULLABLE:
            raise ModelError(
                f"config.json: {key}",
                found="null",
                expected="a value",
                fix=f"leave the key out for {usual!r}",
            )
        return default if value is None else value

    def given(self, key: str) -> Any:
        """A key's value as it stands in the file; ``None`` where it is absent."""
        self._used.add(key)
        return self._values.get(key)

    def need(self, key: str) -> Any:
        """Value of a required key; an absent one or null raises ``ModelError``."""
        if self.given(key) is None:
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
        value = self.given(key)
        if value is not None and value not in accepted:
            raise ModelError(
                f"config.json: {key}",
                found=repr(value),
                expected=" or ".join(repr(entry) for entry in accepted) or "null",
                fix=why or REASONS.get(key, "this switch is not implemented for the family"),
            )

    def finish(self) -> None:
        """Refuse keys that nobody asked for, unless they are harmless, at their default, or off
        where the library knows no such key."""
        for key, value in self._values.items():
            if key in self._used or is_harmless(key):
                continue
            if key in self._defaults:
                self._refuse_unless_default(key, value)
            elif value not in OFF:
                raise ModelError(
                    f"config.json: {key}",
                    found=repr(value),
                    expected="only keys that this family implements",
                    fix="remove the key if it has no effect on the model",
                )
        rates = {k: v for k, v in self._values.items() if only_trains(k) and v not in OFF}
        if rates:
            text = ", ".join(f"{key} {rate}" for key, rate in rates.items())
            _log.info("config.json: %s: not applied, should this model be trained", text)

    def _refuse_unless_default(self, key: str, value: Any) -> None:
        default = self._defaults[key]
        if value != default:
            raise ModelError(
                f"config.json: {key}",
                found=repr(value),
                expected=f"{'null' if default is None else repr(default)}, as by default",
                fix=REASONS.get(key, "this switch is not implemented for the family"),
            )


def checked(cls: type[T], values: Mapping[str, Any], source: str) -> T:
    """A config node from values that a file gave, of whatever type and size they are.

    Raises:
        ModelError: a value is of another type or breaks a rule; all such are named.
    """
    try:
        return config_.from_plain(cls, config_.to_plain(values), source)
    except ConfigError as error:
        raise ModelError(str(error)) from None


def activation(config: HFConfig, key: str = "hidden_act", default: str | None = None) -> Activation:
    """The activation function by transformers' name."""
    name = config.get(key, default)
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ModelError(f"config.json: {key}", found=repr(name), expected=f"one of {known}")
    return ACTIVATIONS[name]


def hf_activation(name: Activation) -> str:
    """The reverse of :func:`activation`."""
    return "gelu_pytorch_tanh" if name == "gelu_tanh" else name
