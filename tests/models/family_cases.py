"""The oracle's cases as our models."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tests.oracle import families

from ziggurat.models import (
    EncoderModel,
    Family,
    LanguageModel,
    Params,
    TwoTowerModel,
    family_for_config,
)
from ziggurat.models.conversion.weight_names import import_weights
from ziggurat.nn import Causal

PREFILL = 13
"""Tokens of a case that are fed at once; the others follow one by one."""


@dataclasses.dataclass(frozen=True)
class Ours:
    """A case as read by our code."""

    family: Family
    config: Any
    model: Any
    params: Params
    theirs: families.Tensors


@functools.cache
def ours(case: str) -> Ours:
    """Our model of a case, its config and weights read as from a published directory."""
    stored = families.load(case)
    theirs = families.weights(case, stored.shapes)
    family = family_for_config(stored.config)
    config = family.as_found(family.from_hf(stored.config), theirs)
    towers = TwoTowerModel if len(family.inputs) > 1 else EncoderModel
    model = (towers if family.encoder else LanguageModel).build(config)
    params = import_weights(
        family.hf_names(config),
        theirs,
        model.abstract,
        layers=config.n_layers,
        place=lambda name, weight: jnp.asarray(weight.read()),
    )
    return Ours(family, config, model, params, theirs)


@functools.cache
def full_logits(case: str) -> np.ndarray:
    """Logits of the case's tokens in one forward pass."""
    model = ours(case).model

    def forward(params, tokens):
        positions = jnp.arange(tokens.shape[1])[None]
        hidden, _ = model.hidden(params, tokens, positions, Causal())
        return model.project(params, hidden)

    return np.asarray(jax.jit(forward)(ours(case).params, jnp.asarray(families.tokens(case))))


def decoded_logits(case: str) -> tuple[np.ndarray, list[int]]:
    """The same through a cache, ``PREFILL`` tokens at once and the rest one by one in a program of
    its own; and the cache's lengths at the end."""
    model, tokens = ours(case).model, jnp.asarray(families.tokens(case))

    def forward(params, tokens, cache):
        positions = cache.lengths[:, None] + jnp.arange(tokens.shape[1])[None]
        hidden, cache = model.hidden(params, tokens, positions, cache)
        return cache, model.project(params, hidden)

    @jax.jit
    def run(params, tokens, cache):
        cache, first = forward(params, tokens[:, :PREFILL], cache)

        def step(cache, token):
            return forward(params, token[:, None], cache)

        cache, rest = jax.lax.scan(step, cache, tokens[:, PREFILL:].T)
        return jnp.concatenate([first, rest[:, :, 0].swapaxes(0, 1)], axis=1), cache.lengths

    logits, lengths = run(ours(case).params, tokens, model.cache(1, families.TOKENS))
    return np.asarray(logits), lengths.tolist()


@functools.cache
def encoded_states(case: str) -> np.ndarray:
    """States and pooled vector of an encoder's case, its head's logits, or vectors and logits of
    two towers, as the oracle stores them."""
    model, inputs = ours(case).model, families.encoder_inputs(case)
    mask, types = inputs.get("attention_mask"), inputs.get("token_type_ids")
    details = {} if types is None else {"token_types": types}

    def towers(params, tokens, mask, pixels):
        vectors = model.text_vectors(params, tokens, mask), model.image_vectors(params, pixels)
        return jnp.concatenate([*vectors, model.logits(params, tokens, mask, pixels)], axis=1)

    if isinstance(model, TwoTowerModel):
        given = inputs["input_ids"], mask, inputs["pixel_values"]
        return np.asarray(jax.jit(towers)(ours(case).params, *given))

    @jax.jit
    def run(params, read, mask, details):
        if model.encoder.head is not None:
            return None, None, model.logits(params, read, mask, **details)
        hidden = model.hidden(params, read, mask, **details)
        pooler = model.encoder.pooler
        return hidden, pooler and model.pooled(params, hidden, mask, read), None

    read = inputs.get("input_ids", inputs.get("pixel_values"))
    return families.encoder_outputs(mask, *run(ours(case).params, read, mask, details))


def row(case: str) -> str:
    """A line of the parity table: largest differences from transformers."""
    expected = families.load(case).logits
    if case in families.ENCODER_CASES:
        return f"{case:40} {np.abs(encoded_states(case) - expected).max():.1e}"
    differences = [
        np.abs(logits - expected).max() for logits in (full_logits(case), decoded_logits(case)[0])
    ]
    return f"{case:40} " + " ".join(f"{difference:.1e}" for difference in differences)
