"""Common base of the objectives over whole answers: dpo, kto and reward."""

import abc
from pathlib import Path
from typing import ClassVar

from ziggurat.core.errors import ConfigError
from ziggurat.data.answers import Kind
from ziggurat.mesh import Layout
from ziggurat.models import Params
from ziggurat.post import tuning
from ziggurat.post.offline.answers import STRUCTS, load_answers
from ziggurat.post.tuning import Tuned
from ziggurat.train.config import RunConfig
from ziggurat.train.objectives import text
from ziggurat.train.parts import ObjectiveKind, Parts, TrainingData, TrainingProgram
from ziggurat.train.step import Objective


class Judging(ObjectiveKind, abc.ABC):
    """Base of objective kinds whose rows are answers with a judgement: preferred, rejected, good or
    bad."""

    adapted = True

    answers: ClassVar[Kind]
    """How they are judged, and so what a row holds."""
    scored: ClassVar[bool] = False
    """Whether a score is trained too."""
    frozen_passes: ClassVar[int] = 0
    """Forward passes without gradients, see :class:`ziggurat.post.tuning.Tuned`."""

    def reference(self, run: RunConfig) -> Path | bool | None:
        """Reference policy of the objective, see :func:`ziggurat.post.tuning.begin`."""
        return False

    @abc.abstractmethod
    def objective(self, run: RunConfig, tuned: Tuned, layout: Layout) -> Objective:
        """Loss and metrics of a batch of answers, as sums."""

    def check_margins(self, run: RunConfig) -> None:
        """Refuse records with margins where the objective does not use them.

        Raises:
            ConfigError: it does not, and says so here.
        """
        raise ConfigError(
            f"objective {run.objective.kind}",
            found="records with a margin",
            expected='none: objective.kind = "reward" learns margins',
            fix="leave margin out of the records",
        )

    def program(self, run: RunConfig, layout: Layout) -> TrainingProgram:
        """Build the program to compile; see :class:`ziggurat.train.parts.ObjectiveKind`."""
        model = text.abstract_model(run, layout)
        passes, scored = self.frozen_passes, self.scored
        tuned = Tuned(model=model, lora=run.adapter, scored=scored, frozen_passes=passes)
        held = self.reference(run) is not False
        return self._program(run, layout, tuned, tuned.frozen_shapes(layout, reference=held))

    def parts(self, run: RunConfig, layout: Layout, data: TrainingData | None = None) -> Parts:
        """Build program and data; see :class:`ziggurat.train.parts.ObjectiveKind`."""
        start = tuning.begin(
            run,
            layout,
            scored=self.scored,
            frozen_passes=self.frozen_passes,
            reference=self.reference(run),
        )
        tokenizer = text.load_tokenizer(run, start.loaded, start.tuned.model)
        answers, held_out = load_answers(run, tokenizer, self.answers)
        if answers.has_margins:
            self.check_margins(run)
        return Parts(
            program=self._program(run, layout, start.tuned, tuning.shapes_of(start.frozen)),
            data=answers,
            files=tuning.files_of(run, start, tokenizer),
            start=start.params,
            frozen=start.frozen,
            tokenizer=tokenizer,
            eval_data=held_out,
            pretrained=None if self.scored else tuning.trained_model(run, start, tokenizer),
        )

    def _program(
        self, run: RunConfig, layout: Layout, tuned: Tuned, frozen: Params
    ) -> TrainingProgram:
        shapes = STRUCTS[self.answers]
        return TrainingProgram(
            model=tuned,
            sums=self.objective(run, tuned, layout),
            batch=shapes(layout, run.data.batch_size, text.row_tokens(run)),
            frozen=frozen,
            frozen_axes=tuned.frozen_axes(frozen),
        )
