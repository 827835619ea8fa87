"""The run file's ``[objective]``: one node for each objective."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Tag

from ziggurat.core import config
from ziggurat.models.diffusion import DiscreteNoise, RectifiedFlow
from ziggurat.optim import LossConfig
from ziggurat.train.nodes.reinforcement import Grpo


@config.node
class LanguageModelling:
    """Predict every next token (pretraining)."""

    kind: Literal["lm"] = "lm"
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    """The cross-entropy and how it is computed."""


@config.node
class FineTuning:
    """Predict every next token that is learned: the assistant's turns, or completions."""

    kind: Literal["sft"] = "sft"
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    """The cross-entropy and how it is computed."""
    chat_template: str | None = None
    """``chatml``, or a file with a template, for a tokenizer that has none or another; it is kept
    with the model."""


@config.node
class DirectPreference:
    """Prefer chosen answers to rejected ones, without a reward model."""

    kind: Literal["dpo"] = "dpo"
    loss: Literal["sigmoid", "robust", "ipo", "hinge"] = "sigmoid"
    """How a pair's log-ratio becomes its loss."""
    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    label_smoothing: float = 0.0
    """Chance that a label is wrong; of ``sigmoid`` (conservative DPO) and ``robust``."""
    reference: Path | None = None
    """The model to be held to; default the one that the run starts from."""

    def __post_init__(self):
        config.require(self.beta > 0, "beta", self.beta, "a number > 0")
        smooth = self.label_smoothing
        config.require(0 <= smooth < 0.5, "label_smoothing", smooth, "a chance below 0.5")
        fits = not smooth or self.loss in ("sigmoid", "robust")
        config.require(fits, "label_smoothing", smooth, f"0 for {self.loss}")


@config.node
class KahnemanTversky:
    """Learn from answers that are good or bad, without pairs."""

    kind: Literal["kto"] = "kto"
    beta: float = 0.1
    """How strongly the policy is held to the reference."""
    desirable_weight: float = 1.0
    """Weight of good answers; with weights the two kinds may count alike though they are not as
    many."""
    undesirable_weight: float = 1.0
    """Weight of bad ones."""
    reference: Path | None = None
    """The model to be held to; default the one that the run starts from."""

    def __post_init__(self):
        for name in ("beta", "desirable_weight", "undesirable_weight"):
            config.require(getattr(self, name) > 0, name, getattr(self, name), "a number > 0")


@config.node
class RewardModelling:
    """Score chosen answers higher than rejected ones."""

    kind: Literal["reward"] = "reward"
    margin: float = 0.0
    """By how much, where records have no ``margin`` of their own."""
    centering: float = 0.0
    """Draws scores towards a mean of 0; 0.01 is usual where that matters."""

    def __post_init__(self):
        config.require(self.centering >= 0, "centering", self.centering, "a number >= 0")


@config.node
class Distillation:
    """Predict as a larger model does."""

    kind: Literal["distill"] = "distill"
    teacher: Path
    """Its run, checkpoint step, Hugging Face directory or GGUF file; with the same tokenizer."""
    divergence: Literal["forward", "reverse", "js"] = "forward"
    """KL of the student from the teacher, of the teacher from the student, or Jensen-Shannon."""
    temperature: float = 1.0
    """Divides the logits of both."""
    hard_weight: float = 0.0
    """Share of the usual cross-entropy in the loss."""
    chunk_tokens: int = 512
    """Tokens whose logits of both models exist at once."""

    def __post_init__(self):
        config.require(self.temperature > 0, "temperature", self.temperature, "a number > 0")
        hard = self.hard_weight
        config.require(0 <= hard < 1, "hard_weight", hard, "a share of 0 or more and below 1")
        config.require(self.chunk_tokens >= 1, "chunk_tokens", self.chunk_tokens, "at least 1")


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
    | Annotated[FineTuning, Tag("sft")]
    | Annotated[DirectPreference, Tag("dpo")]
    | Annotated[KahnemanTversky, Tag("kto")]
    | Annotated[RewardModelling, Tag("reward")]
    | Annotated[Distillation, Tag("distill")]
    | Annotated[Grpo, Tag("grpo")]
    | Annotated[FlowMatching, Tag("flow")]
    | Annotated[Ddpm, Tag("ddpm")],
    Discriminator(config.kind_or("lm")),
]
"""What to learn; a table without ``kind`` is language modelling."""
