"""The oracle's cases as our models."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from tests.oracle import llama as oracle
from tests.quick_jit import quick_jit

from ziggurat.models import Family, LanguageModel, LlamaConfig, Params, family_for_architecture
from ziggurat.models.weight_names import import_weights
from ziggurat.nn import Causal


@dataclasses.dataclass(frozen=True)
class Ours:
    """A case as read by our code."""

    family: Family
    config: LlamaConfig
    model: LanguageModel
    params: Params
    theirs: oracle.Tensors


@functools.cache
def stored() -> dict[str, oracle.Stored]:
    return oracle.load()


@functools.cache
def ours(case: str) -> Ours:
    """Our model of a case, its config and weights read as from a published directory."""
    values, theirs = stored()[case].config, oracle.weights(case, stored()[case].shapes)
    family = family_for_architecture(values["architectures"][0])
    config = family.from_hf(values)
    assert isinstance(config, LlamaConfig)
    model = LanguageModel.build(config)
    params = import_weights(
        family.hf_names(config),
        theirs,
        model.abstract,
        layers=config.n_layers,
        place=lambda name, array: jnp.asarray(array),
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

    return np.asarray(quick_jit(forward)(ours(case).params, jnp.asarray(oracle.tokens(case))))
