"""ModernBERT: what fuzzing of its keys once found, each against transformers."""

import json

import pytest
from tests.oracle import config_parity, config_values

from ziggurat.models import family_for_config
from ziggurat.nn.rope import NoScaling

BASE = {
    "model_type": "modernbert",
    "architectures": ["ModernBertModel"],
    **config_values.BASES["modernbert"][0],
    "max_position_embeddings": 8,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [3.0] * 4,
    "original_max_position_embeddings": 8,
}
DYNAMIC = {"rope_type": "dynamic", "factor": 3.0}


@pytest.mark.parity
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_parameters", {"full_attention": LONG, "sliding_attention": LONG}),
        ("rope_parameters", {"full_attention": DYNAMIC}),
        ("rope_scaling", {"type": "linear", "factor": 3.0}),
        ("classifier_activation", "gelu_10"),
    ],
    ids=["longrope", "dynamic", "by type alone", "activation without a head"],
)
def test_keys_that_were_once_read_otherwise(key, value):
    """Rotation goes by the length of the row, 24 tokens here, beyond the 8 of before scaling."""
    found = config_parity.comparison(json.dumps(BASE)).verdict(key, value, must_accept_inert=True)
    assert not found.fault
    assert found.kind == "equal"


def test_a_scaling_by_type_alone_is_none():
    values = BASE | {"rope_scaling": {"type": "linear", "factor": 3.0}}
    config = family_for_config(values).from_hf(values)
    assert config.rope.scaling == NoScaling()


def test_an_activation_is_asked_for_with_a_head_alone():
    values = BASE | {"classifier_activation": "gelu_10"}
    assert family_for_config(values).from_hf(values).head == "none"
