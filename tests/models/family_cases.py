"""The oracle's cases as our models."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tests.oracle import families

from ziggurat.data.tokenizers import byte_level
from ziggurat.models import (
    EncoderModel,
    Family,
    LanguageModel,
    Params,
    TwoTowerModel,
    family_for_config,
)
from ziggurat.models.conversion.weight_names import import_weights
from ziggurat.nn import Causal, Packed
from ziggurat.nn.rope import depends_on_length
from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.llm.sampling import SamplingParams

PREFILL = 13
"""Tokens of a case that are fed at once; the others follow one by one."""

LONGEST = 32
"""Tokens that the engine allows."""


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


def packed_logits(case: str) -> np.ndarray:
    """The same for the case's tokens as the second document of a row, behind their reverse."""
    model, tokens = ours(case).model, families.tokens(case)[0]
    room = (model.decoder.longest or 2 * len(tokens)) - len(tokens)
    documents = [tokens[::-1][:room], tokens]
    row = jnp.asarray(np.concatenate(documents)[None])
    positions = np.concatenate([np.arange(len(part)) for part in documents]).astype(np.int32)
    segments = np.repeat(np.array([1, 2], np.int32), [len(part) for part in documents])

    def forward(params, row):
        packed = Packed(jnp.asarray(segments)[None])
        hidden, _ = model.hidden(params, row, jnp.asarray(positions)[None], packed)
        return model.project(params, hidden)

    return np.asarray(jax.jit(forward)(ours(case).params, row))[:, -len(tokens) :]


def engine_difference(case: str) -> float:
    """Largest difference of the log-probabilities of the likeliest next tokens, as the serving
    engine gives them for a prompt whose beginning it finds in its prefix cache."""
    made, prompt = ours(case), families.tokens(case)[0].tolist()
    expected = np.asarray(jax.nn.log_softmax(jnp.asarray(families.load(case).logits[0, -1])))
    settings = EngineConfig(max_sequence_length=LONGEST, block_size=8, max_running=1)
    asked = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, logprobs=20)
    with Engine(made.model, made.params, byte_level({}), settings) as engine:
        for _ in range(2):
            (event,) = engine.generate(prompt, asked)
        found = engine.statistics()
    shared = all(spec.shared_by == "blocks" for spec, _ in made.model.decoder.states)
    assert (found.prefix_hits > 0) == shared, found
    (drawn,) = event.logprobs
    return float(max(abs(one.logprob - expected[one.token]) for one in (drawn, *drawn.top)))


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


def differences(case: str) -> dict[str, float]:
    """Largest differences from transformers, by how the outputs were computed."""
    expected = families.load(case).logits

    def largest(found: np.ndarray) -> float:
        return float(np.abs(found - expected).max())

    if case in families.ENCODER_CASES:
        return {"full": largest(encoded_states(case))}
    found = {
        "full": largest(full_logits(case)),
        "decoded": largest(decoded_logits(case)[0]),
        "packed": largest(packed_logits(case)),
    }
    ropes = [layer.rope for layer in ours(case).model.decoder.layers if layer.rope is not None]
    if any(depends_on_length(rope, LONGEST) for rope in ropes):
        return found  # the engine rotates for its own longest length
    return found | {"engine": engine_difference(case)}


def row(case: str) -> str:
    """A line of the parity table."""
    return f"{case:40} " + " ".join(f"{k} {v:.1e}" for k, v in differences(case).items())
