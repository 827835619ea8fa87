"""Supervised fine-tuning: next tokens of packed conversations, loss on what is to be learned."""

import dataclasses
from pathlib import Path
from typing import Literal

from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.data import HuggingFaceTokenizer, ImageTextData
from ziggurat.mesh import Layout
from ziggurat.models import Params
from ziggurat.optim import LossConfig
from ziggurat.post import tuning
from ziggurat.post.image_tuning import Freezing
from ziggurat.post.offline.sft_images import image_parts
from ziggurat.post.tuning import Tuned
from ziggurat.train.config import RunConfig
from ziggurat.train.objectives import text
from ziggurat.train.objectives.lm import language_modelling
from ziggurat.train.parts import ObjectiveKind, Parts, TrainingData, TrainingProgram
from ziggurat.train.step import Arrays, Objective, Sums

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ message.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""OpenAI's markup of turns, with marks around what the assistant says."""


@config.node
class FineTuning:
    """Objective of supervised fine-tuning: predict the tokens of assistant turns, or of
    completions."""

    kind: Literal["sft"] = "sft"
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    """The cross-entropy and how it is computed."""
    chat_template: str | None = None
    """``chatml``, or a file with a template, for a tokenizer that has none or another; it is kept
    with the model."""
    freeze_vision_tower: bool | None = None
    """Whether the vision tower stays as it is; only with ``data.kind = "image_text"``. Default
    true, as in LLaMA-Factory."""
    freeze_multi_modal_projector: bool | None = None
    """Whether the projector between tower and language model stays as it is. Default true."""
    freeze_language_model: bool | None = None
    """Whether the language model stays as it is, so that projector or tower alone are trained.
    Default false."""

    @property
    def freezing(self) -> Freezing:
        """Which parts of a model that reads images stay as they are."""
        return Freezing(
            vision_tower=self.freeze_vision_tower is not False,
            projector=self.freeze_multi_modal_projector is not False,
            language_model=self.freeze_language_model is True,
        )


class FineTuned(ObjectiveKind):
    """Objective kind ``sft``."""

    node = FineTuning
    streams = True
    adapted = True
    quantized = True

    def program(self, run: RunConfig, layout: Layout) -> TrainingProgram:
        _check_text(_node(run))
        tuned = Tuned(model=text.abstract_model(run, layout), lora=run.adapter)
        return _program(run, layout, tuned, tuned.frozen_shapes(layout, reference=False))

    def parts(self, run: RunConfig, layout: Layout, data: TrainingData | None = None) -> Parts:
        if isinstance(run.data, ImageTextData):
            return self._with_images(run, layout, _node(run))
        _check_text(_node(run))
        start = tuning.begin(run, layout)
        node = _node(run)
        tokenizer = text.load_tokenizer(run, start.loaded, start.tuned.model)
        if node.chat_template is not None:
            tokenizer = with_template(tokenizer, node.chat_template)
        data, held_out = text.load_data(run, tokenizer, start.tuned.model, given=data)
        return Parts(
            program=_program(run, layout, start.tuned, tuning.shapes_of(start.frozen)),
            data=data,
            files=tuning.files_of(run, start, tokenizer),
            start=start.params,
            frozen=start.frozen,
            tokenizer=tokenizer,
            eval_data=held_out,
            perplexity=True,
            pretrained=tuning.trained_model(run, start, tokenizer),
        )

    def _with_images(self, run: RunConfig, layout: Layout, node: FineTuning) -> Parts:
        _check_balance(run.adapter is not None, node)

        def templated(tokenizer: HuggingFaceTokenizer) -> HuggingFaceTokenizer:
            own = node.chat_template
            return tokenizer if own is None else with_template(tokenizer, own)

        return image_parts(run, layout, node.loss, node.freezing, templated)


def _node(run: RunConfig) -> FineTuning:
    assert isinstance(run.objective, FineTuning)
    return run.objective


def _check_text(node: FineTuning) -> None:
    """Refuse keys of models that read images, where there are none."""
    names = ("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model")
    for name in names:
        if getattr(node, name) is not None:
            raise ConfigError(
                f"objective.{name}",
                found=getattr(node, name),
                expected='nothing without data.kind = "image_text"',
            )


def _program(run: RunConfig, layout: Layout, tuned: Tuned, frozen: Params) -> TrainingProgram:
    _check_balance(tuned.lora is not None, _node(run))
    return TrainingProgram(
        model=tuned,
        sums=fine_tuning(tuned, run, layout),
        batch=text.batch_struct(layout, run.data.batch_size, text.row_tokens(run)),
        frozen=frozen,
        frozen_axes=tuned.frozen_axes(frozen),
        router_bias_rate=_node(run).loss.router_bias_rate,
    )


def _check_balance(adapted: bool, node: FineTuning) -> None:
    rate = node.loss.router_bias_rate
    if rate and (adapted or node.freeze_language_model):
        raise ConfigError(
            "objective.loss.router_bias_rate",
            found=rate,
            expected="0 where the routers stay as they are",
        )


def fine_tuning(tuned: Tuned, run: RunConfig, layout: Layout) -> Objective:
    """Loss of language modelling over the targets that ``loss_mask`` counts."""
    adapted = tuned.lora is not None
    inner = language_modelling(tuned.model, _node(run).loss, layout, frozen_base=adapted)

    def objective(params: Params, batch: Arrays, frozen: Params) -> Sums:
        sums = inner(tuned.policy(params, frozen), batch, {})
        return sums if not adapted else sums._replace(loads={})

    return objective


def with_template(tokenizer: HuggingFaceTokenizer, template: str) -> HuggingFaceTokenizer:
    """Replace a tokenizer's chat template.

    Args:
        tokenizer: stays as it is.
        template: ``chatml``, or a file with a jinja template.

    Raises:
        ConfigError: there is no such file.
    """
    if template != "chatml":
        try:
            text_ = Path(template).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ConfigError(
                "objective.chat_template",
                found=f"{template!r} ({error.strerror})",
                expected='"chatml" or a readable file',
            ) from None
    else:
        text_ = CHATML
    return HuggingFaceTokenizer(
        tokenizer.backend,
        tokenizer.settings,
        end_ids=tokenizer.eos_ids[1:],
        chat_templates={**tokenizer.chat_templates, "default": text_},
        generation_config=tokenizer.generation_config,
    )
