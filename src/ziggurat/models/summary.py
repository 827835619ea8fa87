"""Figures of a language model: parameters by part, FLOPs and memory by phase, all from its config.

Nothing is allocated: sizes are those of the traced module, so they are right to the unit.
"""

import collections
import dataclasses
from typing import Any

from ziggurat.core.pytrees import named_leaves
from ziggurat.kernels.linear import is_quantized
from ziggurat.models.language_model import LanguageModel
from ziggurat.nn.block import LayerConfig
from ziggurat.nn.mlp import GatedMlpConfig
from ziggurat.nn.moe import MixtureOfExpertsConfig
from ziggurat.profile.flops import mean_keys

ADAMW_BYTES = 16
"""Bytes per parameter that training with AdamW holds in float32: the parameter, its gradient and
two moments."""


@dataclasses.dataclass(frozen=True)
class PhaseCost:
    """Work and memory of one phase."""

    flops_per_token: float
    """Floating-point operations, a multiply-add as 2; of decoding at a full context."""
    memory_bytes: int
    """Weights and what the phase keeps beside them; activations are not counted."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Figures of a model at one context length and number of sequences."""

    parameters: int
    """All parameters; tied ones count once."""
    active_parameters: int
    """Parameters without the experts that a token is not sent to."""
    parts: dict[str, int]
    """Parameters by part of the model."""
    layers: tuple[tuple[int, str], ...]
    """Consecutive layers of one form: how many, and what they are."""
    state_bytes_per_token: int
    """Bytes of the key/value cache for one token of one sequence."""
    state_bytes_per_sequence: int
    """Bytes of recurrent states for one sequence, whatever its length."""
    training: PhaseCost
    prefill: PhaseCost
    decode: PhaseCost


def summarise(model: LanguageModel, context: int, sequences: int = 1) -> Summary:
    """Figures of a model.

    Weights and cache have the model's types (``precision``); training holds
    :data:`ADAMW_BYTES` per parameter.

    Args:
        model: the model.
        context: t, tokens of a sequence.
        sequences: sequences decoded at once.

    >>> from ziggurat.models import LlamaConfig
    >>> config = LlamaConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=2, d_ff=32)
    >>> found = summarise(LanguageModel.build(config), context=8)
    >>> found.parameters, found.parts["embedding"], found.state_bytes_per_token
    (5712, 512, 256)
    >>> found.layers
    ((2, 'attention (2 heads, 2 kv heads), gated mlp (32)'),)
    """
    layers = model.decoder.layers
    weights = named_leaves(model.abstract, is_leaf=is_quantized)
    stored = sum(leaf.size * leaf.dtype.itemsize for leaf in named_leaves(model.abstract).values())
    dtype = model.precision.compute_dtype
    per_token = sum(layer.state.token_bytes(dtype) for layer in layers)
    per_sequence = sum(layer.state.sequence_bytes(dtype) for layer in layers)
    kept = sequences * (context * per_token + per_sequence)
    products = 2 * model.matmul_parameter_count + model.recurrent_flops_per_token
    prefill = float(products) + sum(_pairs(layer, context) for layer in layers)
    decode = float(products) + sum(_newest(layer, context) for layer in layers)
    return Summary(
        parameters=model.parameter_count,
        active_parameters=model.active_parameter_count,
        parts=_parts(weights),
        layers=_forms(layers),
        state_bytes_per_token=per_token,
        state_bytes_per_sequence=per_sequence,
        training=PhaseCost(3 * prefill, ADAMW_BYTES * model.parameter_count),
        prefill=PhaseCost(prefill, stored + kept),
        decode=PhaseCost(decode, stored + kept),
    )


def _pairs(layer: LayerConfig, context: int) -> float:
    """FLOPs of attention per token, the mean over a causal sequence."""
    return layer.block.mixer.cost.per_pair * mean_keys(context, window=layer.rule.window)


def _newest(layer: LayerConfig, context: int) -> float:
    """FLOPs of attention for the last token of a sequence."""
    return float(layer.block.mixer.cost.per_pair * min(context, layer.rule.window or context))


def _parts(weights: dict[str, Any]) -> dict[str, int]:
    """Parameters by part: of a layer by its mixer and feed-forward part, norms with what they
    stand before."""
    parts: collections.Counter[str] = collections.Counter()
    for name, leaf in weights.items():
        first, *rest = name.split(".")
        part = rest[0] if first.startswith("blocks") else first
        for suffix in ("_post_norm", "_norm", "_scale"):
            part = part.removesuffix(suffix)
        parts["norm" if part == "final" else part] += leaf.size
    return dict(parts)


def _forms(layers: tuple[LayerConfig, ...]) -> tuple[tuple[int, str], ...]:
    forms: list[tuple[int, str]] = []
    for layer in layers:
        text = _form(layer)
        count = forms.pop()[0] if forms and forms[-1][1] == text else 0
        forms.append((count + 1, text))
    return tuple(forms)


def _form(layer: LayerConfig) -> str:
    """A layer in words: ``attention 8 heads, 2 kv, window 4096 + gated mlp 1024``."""
    mixer, mlp, rule = layer.block.mixer, layer.block.mlp, layer.rule
    heads = [f"{count} {axis.replace('_', ' ')}" for axis, count in mixer.divided.items()]
    window = [f"window {rule.window}"] if rule.window else []
    details = ", ".join(heads + window)
    text = mixer.name.replace("_", " ") + (f" ({details})" if details else "")
    return text if mlp is None else f"{text}, {_feed_forward(mlp)}"


def _feed_forward(mlp: Any) -> str:
    if isinstance(mlp, MixtureOfExpertsConfig):
        shared = f" and a shared one of {mlp.shared.hidden}" if mlp.shared else ""
        router = mlp.router
        return f"{router.chosen} of {router.experts} experts of {mlp.hidden}{shared}"
    kind = "gated mlp" if isinstance(mlp, GatedMlpConfig) else "mlp"
    return f"{kind} ({mlp.hidden})" if hasattr(mlp, "hidden") else type(mlp).__name__
