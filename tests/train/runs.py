"""Tiny runs for tests."""

from ziggurat.core import config
from ziggurat.train.config import RunConfig

TEXT = """
name = "tiny"
seed = 3

[model]
kind = "llama"
vocab_size = 288
d_model = 32
n_layers = 2
n_heads = 4
n_kv_heads = 2
d_ff = 64

[tokenizer]
kind = "bytes"

[data]
sources = [{ kind = "text", path = "{stdlib}/json", glob = "*.py" }]
sequence_length = 32
batch_size = 8

[optimizer]
kind = "adamw"
lr = 1e-2

[train]
steps = 6

[checkpoint]
every = 2

[report]
tensorboard = false
"""


def resolved(*overrides: str) -> config.Resolved[RunConfig]:
    return config.parse(RunConfig, TEXT, overrides, source="tiny.toml")


def run(*overrides: str) -> RunConfig:
    return resolved(*overrides).value
