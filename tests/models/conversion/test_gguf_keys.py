"""Every metadata key that the gguf package enumerates is read, without effect with a reason, or
refused by name."""

import contextlib
import re

import numpy as np
import pytest
from gguf.constants import Keys

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion import gguf_keys
from ziggurat.models.families.llama.gguf import from_gguf
from ziggurat.nn.rope import LinearScaling, Llama3Scaling, NoScaling, RopeConfig, frequencies

BASE = {
    "general.architecture": "llama",
    "llama.context_length": 512,
    "llama.embedding_length": 64,
    "llama.block_count": 2,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.tokens": [str(number) for number in range(32)],
}
NAMES = sorted(
    {
        value
        for group in vars(Keys).values()
        if isinstance(group, type)
        for key, value in vars(group).items()
        if not key.startswith("_") and isinstance(value, str)
    }
)
OF_THE_MODEL = [n for n in NAMES if n.startswith(("{arch}", "adapter", "clip", "diffusion"))]
CHANGES = {
    "{arch}.vocab_size": 33,
    "{arch}.context_length": 256,
    "{arch}.embedding_length": 128,
    "{arch}.block_count": 3,
    "{arch}.feed_forward_length": 256,
    "{arch}.attention.head_count": 2,
    "{arch}.attention.head_count_kv": 4,
    "{arch}.attention.key_length": 32,
    "{arch}.attention.value_length": 32,
    "{arch}.attention.layer_norm_rms_epsilon": 1e-6,
    "{arch}.attention.sliding_window": 16,
    "{arch}.attention.scale": 0.5,
    "{arch}.rope.dimension_count": 8,
    "{arch}.rope.freq_base": 5e5,
    "{arch}.rope.scaling.type": "yarn",
    "{arch}.rope.scaling.factor": 4.0,
    "{arch}.rope.scale_linear": 4.0,
}
"""Another value of each key that decides the config."""
BOUND = frozenset(
    f"{{arch}}.{key}"
    for key in (
        "vocab_size",
        "attention.value_length",
        "attention.scale",
        "rope.dimension_count",
        "rope.scaling.type",
    )
)
"""Those that must agree with the rest of the file, and are refused otherwise."""


def named(key):
    return key.replace("{arch}", "llama").replace("{id}", "0").replace("{name}", "tool_use")


def config(**more):
    return from_gguf(BASE | {named(key): value for key, value in more.items()})


@pytest.mark.parametrize("key", NAMES)
def test_every_key_has_its_place(key):
    """A model's keys are read, have a reason to be without effect, or are refused; and no other."""
    role = gguf_keys.role(key)
    if role == "read" and key.startswith("{arch}"):
        refusal = re.escape(named(key)) if key in BOUND else ""
        with pytest.raises(ModelError, match=refusal) if refusal else contextlib.nullcontext():
            assert config(**{key: CHANGES[key]}) != config(), "another value, the same config"
    elif role is None and key in OF_THE_MODEL:
        with pytest.raises(ModelError, match="GGUF metadata") as caught:
            config(**{key: 7})
        assert named(key) in str(caught.value)
        for neutral in gguf_keys.REFUSED.get(key, (0, False, [0, 0])):
            assert config(**{key: neutral}) == config()
    elif role != "read":
        assert role or key in gguf_keys.REFUSED or key.startswith(("adapter", "xielu")), key
        if role:
            assert config(**{key: 7}) == config()


def test_each_key_is_in_one_table():
    tables = [set(gguf_keys.READ), set(gguf_keys.INERT), set(gguf_keys.REFUSED)]
    assert sum(map(len, tables)) == len(set.union(*tables))
    assert {key for key in gguf_keys.READ if key.startswith("{arch}")} == CHANGES.keys()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("{arch}.attention.causal", False),
        ("{arch}.logit_scale", 4.0),
        ("{arch}.residual_scale", 0.2),
        ("{arch}.embedding_scale", 12.0),
        ("{arch}.attention.scale", 0.1),
        ("{arch}.attention.value_length", 32),
        ("{arch}.expert_count", 8),
        ("{arch}.attention.head_count_kv", [2, 4]),
        ("{arch}.final_logit_softcapping", 30.0),
        ("{arch}.rope.scaling.attn_factor", 1.2),
        ("{arch}.a_key_of_next_year", 3),
        ("general.type", "adapter"),
    ],
)
def test_what_would_change_the_result_is_refused_by_name(key, value):
    with pytest.raises(ModelError) as caught:
        config(**{key: value})
    assert named(key) in str(caught.value)


@pytest.mark.parametrize(
    ("more", "scaling"),
    [
        ({}, NoScaling()),
        ({"{arch}.rope.scaling.factor": 4.0}, LinearScaling(factor=4.0)),
        ({"{arch}.rope.scale_linear": 4.0}, LinearScaling(factor=4.0)),
        (
            {"{arch}.rope.scaling.type": "linear", "{arch}.rope.scaling.factor": 2.0},
            LinearScaling(factor=2.0),
        ),
        ({"{arch}.rope.scaling.type": "none", "{arch}.rope.scaling.factor": 4.0}, NoScaling()),
        ({"{arch}.rope.scaling.factor": 1.0}, NoScaling()),
        ({"{arch}.rope.scaling.factor": 0.0}, NoScaling()),
    ],
)
def test_a_rope_factor_without_a_type_divides_positions_as_in_llama_cpp(more, scaling):
    assert config(**more).rope.scaling == scaling


def test_a_factor_beside_llama_3_divisors_is_refused():
    plain, _ = frequencies(RopeConfig(), 16)
    scaled, _ = frequencies(RopeConfig(scaling=Llama3Scaling(factor=8.0)), 16)
    divisors = np.asarray(plain / scaled, np.float32)
    assert from_gguf(BASE, divisors).rope.scaling == Llama3Scaling(factor=8.0)
    with pytest.raises(ModelError, match="rope_freqs"):
        from_gguf(BASE | {"llama.rope.scaling.factor": 2.0}, divisors)


def test_values_by_layer_that_are_alike_are_one():
    assert config(**{"{arch}.attention.head_count_kv": [2, 2]}) == config()


def test_sampling_settings_become_generation_settings():
    values = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.name": "x"}
    assert gguf_keys.sampling_defaults(values) == {"temperature": 0.6, "top_k": 20}
