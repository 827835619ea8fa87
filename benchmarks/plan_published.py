"""What `ziggurat plan` says of training runs whose speed was published, and how far off it is.

    python benchmarks/plan_published.py

The published runs are MaxText's; each is rebuilt as a run file of the same sizes, mesh and batch
and planned by the analytic model (nothing is compiled, libtpu is needed). Recomputation differs:
MaxText has policies that offload to the host, or repeat some products only (that of Llama 2 70B on
v5p repeats gate and up, two ninths of a layer's work, where ours repeats none); the nearest of ours
stands for each. One constant per generation is fitted on the first run of that generation (marked),
the others test it. Compared are tokens per second and chip, which do not depend on how FLOPs are
counted; where only TFLOP/s were published they are turned into tokens by MaxText's count of that
time, attention over the whole sequence.

Sources: T, https://github.com/AI-Hypercomputer/maxtext docs/reference/models/tiering.md with
benchmarks/maxtext_trillium_model_configs.py and maxtext_v5p_model_configs.py; R, the same
repository's README of 2024 with MaxText/configs/v5p/64b.sh, 128b.sh and MaxText/configs/v5e/16b.sh,
64b.sh, whose models are the base of configs/base.yml scaled by global_parameter_scale.
"""

import dataclasses
import statistics

from ziggurat.core import config
from ziggurat.plan import Plan, Topology, prepare
from ziggurat.plan.estimate import efficiency
from ziggurat.train.ahead_of_time import subject
from ziggurat.train.config import RunConfig


@dataclasses.dataclass(frozen=True)
class Published:
    """A run and its speed."""

    name: str
    topology: str
    model: tuple[int, int, int, int, int, int]
    """Vocabulary, width, layers, heads, key/value heads, feed-forward width."""
    sequence: int
    rows_per_chip: int
    remat: str
    tensor: int
    source: str
    tokens_per_s: float | None = None
    """A chip's."""
    flops_per_s: float | None = None
    """The same as FLOP/s, where tokens were not published."""
    fitted: bool = False
    """Whether its generation's constant comes from it."""


LLAMA3_8B = (128256, 4096, 32, 32, 8, 14336)
LLAMA3_70B = (128256, 8192, 80, 64, 8, 28672)
LLAMA2_70B = (32000, 8192, 80, 64, 8, 28672)
POINTS = (
    Published("Llama 3.1 70B", "v6e:16x16", LLAMA3_70B, 8192, 4, "full", 1, "T", 960.0, None, True),
    Published("Llama 3.1 8B", "v6e:16x16", LLAMA3_8B, 8192, 4, "full", 1, "T", 7207.0),
    Published("Llama 2 70B", "v6e:16x16", LLAMA2_70B, 4096, 2, "full", 1, "T", 900.0),
    Published(
        "64B", "v5p:4x4x4", (32000, 8192, 64, 64, 64, 28672), 2048, 3, "dots", 4, "R",
        flops_per_s=323e12, fitted=True,
    ),
    Published("Llama 2 70B", "v5p:8x8x8", LLAMA2_70B, 4096, 4, "dots", 1, "T", 692.0),
    Published(
        "128B", "v5p:4x4x8", (32000, 8192, 64, 128, 128, 57344), 2048, 1, "dots", 8, "R",
        flops_per_s=315e12,
    ),
    Published(
        "16B", "v5e:16x16", (32000, 4096, 32, 64, 64, 28672), 2048, 6, "full", 1, "R",
        flops_per_s=120e12, fitted=True,
    ),
    Published(
        "64B", "v5e:16x16", (32000, 8192, 64, 64, 64, 28672), 2048, 2, "full", 1, "R",
        flops_per_s=118e12,
    ),
)  # fmt: skip


def run_of(point: Published) -> RunConfig:
    """The published run as a run file."""
    vocab, width, layers, heads, kv_heads, hidden = point.model
    chips = Topology.parse(point.topology).chips
    tree = {
        "name": "published",
        "model": {
            "kind": "llama",
            "vocab_size": vocab,
            "d_model": width,
            "n_layers": layers,
            "n_heads": heads,
            "n_kv_heads": kv_heads,
            "head_dim": 128,
            "d_ff": hidden,
            "tie_embeddings": False,
        },
        "data": {
            "sources": [{"kind": "text", "path": "."}],
            "sequence_length": point.sequence,
            "batch_size": point.rows_per_chip * chips,
        },
        "optimizer": {"kind": "adamw", "lr": 1e-4},
        "objective": {"kind": "lm", "loss": {"chunk_tokens": 2048 * chips}},
        "train": {"steps": 10, "remat": point.remat},
        "mesh": {"fsdp": -1, "tensor": point.tensor},
    }
    return config.from_plain(RunConfig, tree)


def plan_of(point: Published) -> Plan:
    """What the analytic model says of it."""
    topology = Topology.parse(point.topology)
    return prepare(subject(run_of(point), topology.devices()), topology).plan


def tokens_per_s(point: Published, plan: Plan) -> float:
    """The published speed of a chip."""
    if point.tokens_per_s is not None:
        return point.tokens_per_s
    assert point.flops_per_s is not None
    return point.flops_per_s * plan.estimate.tokens / plan.estimate.model_flops


def main() -> None:
    errors = []
    print(f"{'run':14} {'topology':10} {'published':>9} {'predicted':>9} {'error':>7}  MFU  split")
    for point in POINTS:
        plan = plan_of(point)
        figures = plan.estimate
        known, said = tokens_per_s(point, plan), figures.tokens_per_s / figures.chips
        error = said / known - 1
        if not point.fitted:
            errors.append(abs(error))
        reach = efficiency(plan.topology.generation.name)
        note = f"fitted: {reach}" if point.fitted else "test"
        split = " ".join(f"{k} {v / figures.step_s:.0%}" for k, v in figures.by_kind_s.items())
        print(
            f"{point.name:14} {point.topology:10} {known:9,.0f} {said:9,.0f} {error:+7.1%}  "
            f"{figures.mfu:.0%}  {split} exposed {figures.exposed_s / figures.step_s:.0%}  "
            f"{note} ({point.source})"
        )
    print(f"median of the absolute errors of the {len(errors)} test runs: "
          f"{statistics.median(errors):.1%}")  # fmt: skip


if __name__ == "__main__":
    main()
