"""Proof that a conversion is right: the same logits as transformers on the same tokens."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from ziggurat.core import prng
from ziggurat.core.errors import EnvironmentError
from ziggurat.models.pretrained import Pretrained
from ziggurat.models.pretrained_encoder import PretrainedEncoder


class Proof(TypedDict):
    """How far our logits are from transformers', both in float32."""

    max_logit_difference: float
    kl_divergence: float
    """Mean over positions of KL(theirs || ours), nats."""
    tokens: int
    """Positions compared."""
    transformers: str
    """Version compared with."""


class EncoderProof(TypedDict):
    """How far our states are from transformers', both in float32."""

    max_state_difference: float
    tokens: int
    """Positions compared."""
    transformers: str
    """Version compared with."""


def available() -> bool:
    """Whether transformers and torch are installed."""
    return all(importlib.util.find_spec(name) for name in ("transformers", "torch"))


def against_transformers(source: Path, ours: Pretrained, tokens: int = 64) -> Proof:
    """Run both models over the same random tokens.

    Args:
        source: what ``ours`` was read from: a Hugging Face directory or a GGUF file.
        ours: the converted model.
        tokens: length of the sequence.

    Raises:
        EnvironmentError: transformers or torch is missing.
    """
    torch, transformers = _oracle()
    tokens = min(tokens, ours.model.config.max_sequence_length)
    ids = prng.host_stream(0, "proof").integers(0, ours.model.config.vocab_size, (1, tokens))
    options = {} if source.is_dir() else {"gguf_file": source.name}
    directory = source if source.is_dir() else source.parent
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, **options
    ).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    found = jax.jit(ours.model.logits)(ours.params, jnp.asarray(ids))
    p, q = (jax.nn.log_softmax(jnp.asarray(logits)) for logits in (expected, found))
    return Proof(
        max_logit_difference=float(np.abs(np.asarray(found) - expected).max()),
        kl_divergence=float(jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1))),
        tokens=tokens,
        transformers=transformers.__version__,
    )


def encoder_against_transformers(
    source: Path, ours: PretrainedEncoder, tokens: int = 64
) -> EncoderProof:
    """Run both encoders over the same random tokens.

    Args:
        source: the Hugging Face directory that ``ours`` was read from.
        ours: the converted encoder.
        tokens: length of the sequence.

    Raises:
        EnvironmentError: transformers or torch is missing.
    """
    torch, transformers = _oracle()
    tokens = min(tokens, ours.model.config.max_sequence_length)
    ids = prng.host_stream(0, "proof").integers(0, ours.model.config.vocab_size, (1, tokens))
    theirs = transformers.AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).last_hidden_state.numpy()
    found = jax.jit(ours.model.hidden)(ours.params, jnp.asarray(ids), jnp.ones(ids.shape, int))
    return EncoderProof(
        max_state_difference=float(np.abs(np.asarray(found) - expected).max()),
        tokens=tokens,
        transformers=transformers.__version__,
    )


def _oracle() -> tuple[Any, Any]:
    """torch and transformers."""
    if not available():
        raise EnvironmentError(
            "comparison with transformers",
            found="transformers or torch not installed",
            expected="both",
            fix="pip install 'ziggurat[oracle]', or leave the comparison out",
        )
    # by name: neither is a dependency, so a type checker need not find them
    return importlib.import_module("torch"), importlib.import_module("transformers")
