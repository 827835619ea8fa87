"""A tiny run under a controller, and what is compared of two of them."""

from collections import defaultdict
from pathlib import Path

from tests.compilation import QUICK

from ziggurat.cluster import Cluster
from ziggurat.core import config
from ziggurat.train.config import RunConfig
from ziggurat.train.elastic import usable
from ziggurat.train.metrics import read_metrics

RUN = """
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
sequence_length = 32
batch_size = 12
sources = [{ kind = "text", path = "{stdlib}/json", glob = "*.py" }]
[optimizer]
kind = "adamw"
lr = 3e-3
[train]
steps = 12
[mesh]
data = -1
fsdp = 1
[checkpoint]
every = 4
[checkpoint.memory]
every = 1
linger_s = 20
[report]
tensorboard = false
"""
# less effort spent on machine code: compiling is what tests wait for
PROGRAM = "ziggurat.train.elastic:train_on"


def start_cluster(directory: Path, pause_s: float = 0.0, preload=(), **options) -> Cluster:
    """A cluster whose hosts are ready to train, slowly, and note what they see."""
    return Cluster(
        directory=directory,
        preload=["ziggurat.train.elastic", "tests.cluster.noting", *preload],
        env={"XLA_FLAGS": QUICK, "JAX_PLATFORMS": "cpu", "NOTING_PAUSE_S": str(pause_s)},
        **options,
    )


class Run:
    """One run in ``folder/name``; the token cache is shared with the others there."""

    def __init__(self, folder: Path, name: str, *overrides: str):
        self.folder, self.name = folder, name
        self.overrides = (f"name={name}", f"output={folder}", *overrides)
        self.config = config.parse(RunConfig, RUN, self.overrides).value
        self.directory = folder / name
        self.rows = folder / f"{name}.rows"
        self.rows.mkdir(exist_ok=True)

    def train(self, cluster: Cluster, wanted: int):
        return cluster.train(
            PROGRAM,
            RUN,
            "tiny.toml",
            self.overrides,
            wanted,
            usable=usable(self.config, 1, wanted),
        )

    def curve(self) -> list[tuple[int, float]]:
        rows = read_metrics(self.directory / "metrics.jsonl")
        return [(row["step"], row["loss"]) for row in rows if "loss" in row]

    def digests(self) -> dict[tuple[int, int], set[str]]:
        """Digests of each row of each step, over all hosts and worlds."""
        found = defaultdict(set)
        for file in self.rows.iterdir():
            for line in file.read_text().splitlines():
                step, row, digest = line.split()
                found[int(step), int(row)].add(digest)
        return found
