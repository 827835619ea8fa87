"""Greedy generation from prompts with images, by a plain cache: the reference of the engine."""

import dataclasses
from collections.abc import Collection
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ziggurat.core.errors import ShapeError
from ziggurat.models.language_model import LanguageModel
from ziggurat.models.traced_model import Params
from ziggurat.models.vision_language_model import ImagePrompt, VisionLanguageModel
from ziggurat.nn.attention_context import Cached
from ziggurat.nn.multimodal import MultimodalInputs


def generate(
    model: VisionLanguageModel,
    params: Params,
    prompt: ImagePrompt,
    max_new_tokens: int,
    stops: Collection[int] = (),
) -> list[list[int]]:
    """Continue rows of tokens with images by the most likely token.

    Args:
        model: the model.
        params: the language model's parameters.
        prompt: see :meth:`VisionLanguageModel.prompt`; rows without padding.
        max_new_tokens: most tokens that are added to a row.
        stops: ids after which a row ends; they are its last token.

    Returns:
        The added tokens of each row.

    Raises:
        ShapeError: the rows would be longer than the model's context.
    """
    rows, length = prompt.tokens.shape
    longest = model.config.language.max_sequence_length
    if length + max_new_tokens > longest:
        raise ShapeError(
            "generation",
            found=f"{length} tokens and {max_new_tokens} new ones",
            expected=f"at most {longest} together",
            fix="shorten the prompt or use fewer images",
        )
    language = model.language
    run = jax.jit(partial(_likeliest, language))  # once for the prompt, once for each new token
    cache = language.cache(rows, length + max_new_tokens)
    cache = dataclasses.replace(cache, last_seen=prompt.last_seen)
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], (rows, length))
    newest, cache = run(params, prompt.tokens, positions, cache, prompt.inputs)
    found, ended = [[] for _ in range(rows)], np.zeros(rows, bool)
    for step in range(max_new_tokens):
        for row, token in enumerate(np.asarray(newest).tolist()):
            if not ended[row]:
                found[row].append(token)
                ended[row] = token in stops
        if ended.all() or step + 1 == max_new_tokens:
            break
        position = jnp.full((rows, 1), length + step, jnp.int32)
        newest, cache = run(params, newest[:, None], position, cache, _ahead(prompt, position))
    return found


def _ahead(prompt: ImagePrompt, position: Int[Array, "b 1"]) -> MultimodalInputs | None:
    """Positions of tokens behind the prompt by axis, where they have several."""
    rotary = prompt.inputs and prompt.inputs.rotary_positions
    if rotary is None or prompt.ahead is None:
        return None
    there = (position + prompt.ahead[:, None])[..., None]
    return MultimodalInputs(rotary_positions=jnp.repeat(there, rotary.shape[-1], axis=-1))


def _likeliest(
    language: LanguageModel,
    params: Params,
    tokens: Int[Array, "b t"],
    positions: Int[Array, "b t"],
    cache: Cached,
    inputs: MultimodalInputs | None,
) -> tuple[Int[Array, "b"], Cached]:
    hidden, cache = language.hidden(params, tokens, positions, cache, inputs)
    return jnp.argmax(language.project(params, hidden[:, -1]), axis=-1).astype(jnp.int32), cache
