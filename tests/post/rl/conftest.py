"""A tiny policy with a byte tokenizer, and its sampler."""

import jax
import pytest

from ziggurat.data.tokenizers import byte_level
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.post.rl.rollouts import Sampler

LONGEST = 48


@pytest.fixture(scope="session")
def tokenizer():
    return byte_level({"eos_token": "<|end|>"})


@pytest.fixture(scope="session")
def model():
    return LanguageModel.build(
        LlamaConfig(
            vocab_size=257,
            d_model=32,
            n_layers=2,
            n_heads=2,
            n_kv_heads=1,
            d_ff=64,
            max_sequence_length=64,
            init_std=0.3,
        )
    )


@pytest.fixture(scope="session")
def weights(model):
    """Two sets of parameters."""
    return [model.init(jax.random.key(seed)) for seed in (0, 1)]


@pytest.fixture(scope="module")
def sampler(model, weights, tokenizer):
    made = Sampler(model, weights[0], tokenizer, longest=LONGEST, running=4)
    yield made
    made.close()
