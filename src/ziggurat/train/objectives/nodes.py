"""The run file's ``[objective]``: one node per kind, imported by nothing but the run file and the
kinds themselves."""

import dataclasses
from typing import Annotated, Literal

from pydantic import Discriminator, Tag

from ziggurat.core import config
from ziggurat.models.diffusion import DiscreteNoise, RectifiedFlow
from ziggurat.optim import LossConfig


@config.node
class LanguageModelling:
    """Predict every next token (pretraining)."""

    kind: Literal["lm"] = "lm"
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    """The cross-entropy and how it is computed."""


@config.node
class FlowMatching(RectifiedFlow):
    """Predict the direction from images to noise (flow matching on straight lines).

    Paper: Lipman et al. 2022, https://arxiv.org/abs/2210.02747; times: Esser et al. 2024,
    https://arxiv.org/abs/2403.03206.
    """

    times: Literal["logit_normal", "uniform"] = "logit_normal"
    """How sigmas are drawn: most in the middle, or evenly."""
    logit_mean: float = 0.0
    """Of the logit-normal sigmas: above 0, more noise."""
    logit_std: float = 1.0
    """Of the logit-normal sigmas: their spread."""
    class_dropout: float = 0.1
    """Share of images whose class is hidden, so that guidance has something to steer from."""

    def __post_init__(self):
        super().__post_init__()
        config.require(self.logit_std > 0, "logit_std", self.logit_std, "more than 0")
        _check_share("class_dropout", self.class_dropout)


@config.node
class Ddpm(DiscreteNoise):
    """Predict the noise, the image or a mixture of both, at a discrete noise level (DDPM)."""

    min_snr: float | None = None
    """Bound on the weight of weak noise, e.g. 5 (min-SNR); default all levels weigh the same."""
    class_dropout: float = 0.1
    """Share of images whose class is hidden, so that guidance has something to steer from."""

    def __post_init__(self):
        super().__post_init__()
        config.require(
            self.min_snr is None or self.min_snr > 0, "min_snr", self.min_snr, "more than 0"
        )
        _check_share("class_dropout", self.class_dropout)


def _check_share(key: str, share: float) -> None:
    config.require(0 <= share < 1, key, share, "0 or more and below 1")


ObjectiveNode = Annotated[
    Annotated[LanguageModelling, Tag("lm")]
    | Annotated[FlowMatching, Tag("flow")]
    | Annotated[Ddpm, Tag("ddpm")],
    Discriminator(config.kind_or("lm")),
]
"""What to learn; a table without ``kind`` is language modelling."""
