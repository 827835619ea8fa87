"""The run file's ``[objective]``: one node per kind, imported by nothing but the run file and the
kinds themselves."""

import dataclasses
from typing import Annotated, Literal

from pydantic import Discriminator, Tag

from ziggurat.core import config
from ziggurat.optim import LossConfig
from ziggurat.train.objectives.reinforcement import Grpo


@config.node
class LanguageModelling:
    """Predict every next token (pretraining)."""

    kind: Literal["lm"] = "lm"
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    """The cross-entropy and how it is computed."""


ObjectiveNode = Annotated[
    Annotated[LanguageModelling, Tag("lm")] | Annotated[Grpo, Tag("grpo")],
    Discriminator(config.kind_or("lm")),
]
"""What to learn; a table without ``kind`` is language modelling."""
