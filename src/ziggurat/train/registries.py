"""Open doors of training: the registries that a run file reads and that other packages add to."""

from typing import TYPE_CHECKING, Any

from ziggurat.core.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from ziggurat.core.protocols import MetricSink
    from ziggurat.train.config import RunConfig
    from ziggurat.train.parts import ObjectiveKind
    from ziggurat.train.supplied import Callback

_HERE = "ziggurat.train.objectives"

OBJECTIVES: Registry["type[ObjectiveKind]"] = Registry(
    "objective.kind",
    homes={
        "lm": f"{_HERE}.lm:PackedText",
        "flow": f"{_HERE}.images:Flow",
        "ddpm": f"{_HERE}.images:Denoising",
    },
    extensions=("ziggurat.post",),
)
"""Objectives by name: classes of :class:`ziggurat.train.parts.ObjectiveKind`."""

DATA: Registry[Any] = Registry(
    "data.kind",
    homes={
        "text": "ziggurat.data:DataConfig",
        "images": "ziggurat.data:ImageData",
        "image_text": "ziggurat.data:ImageTextData",
    },
    extensions=("ziggurat.post",),
)
"""Nodes of ``[data]`` by kind; an objective says which it learns from."""

SINKS: Registry["Callable[[RunConfig, int], MetricSink]"] = Registry(
    "report.sinks",
    homes={
        "jsonl": "ziggurat.train.metrics:json_lines_sink",
        "tensorboard": "ziggurat.train.metrics:tensorboard_sink",
    },
)
"""Functions that open a metric sink for a run, resumed at a step, by name."""

CALLBACKS: Registry["Callable[[RunConfig], Callback]"] = Registry("train.callbacks")
"""Functions, or classes, that make a callback of a run, by name."""
