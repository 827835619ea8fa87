"""Rollouts: completions drawn by the serving engine in the training process, with the
log-probability of every token.

The engine reads the trainer's own arrays. All but the stacked layers are shared; those are copied
apart after each update by programs compiled once (:mod:`ziggurat.models.unstacked`). A completion's
draws are keyed by (run's seed, step, prompt, place in its group), and all requests of a step reach
an idle engine together, with an empty prefix cache: a step's completions depend on its weights
alone, not on what the process did before.
"""

import dataclasses
import threading
from collections.abc import Sequence

from ziggurat.core import prng
from ziggurat.core.errors import ConfigError, ShardingError
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.mesh import Processes
from ziggurat.models import LanguageModel, Params
from ziggurat.nn.rope import depends_on_length
from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.llm.output_text import TokenEvent
from ziggurat.serve.llm.request import Listener
from ziggurat.serve.llm.sampling import MAX_CHOICES, SamplingParams


@dataclasses.dataclass
class Drawn:
    """One sampled completion."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    """An end id included."""
    log_probs: list[float] = dataclasses.field(default_factory=list)
    """With which each was drawn, nats, at the temperature of the draw."""
    versions: list[int] = dataclasses.field(default_factory=list)
    """Version of the weights that drew each token."""
    ended: bool = False
    """Whether it came to its end rather than to the limit of its length."""
    text: str = ""
    """Without special tokens."""


class Sampler:
    """Draws completions from an engine whose weights change every step.

    Args:
        model: the model; built without remat.
        params: weights of its shapes.
        tokenizer: the model's.
        longest: most tokens of prompt and completion together.
        running: completions that are generated together.

    Raises:
        ShardingError: there are several processes.
        ConfigError: ``longest`` is more than the model's context, or the model would rotate
            otherwise in training than in the engine.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: Params,
        tokenizer: HuggingFaceTokenizer,
        *,
        longest: int,
        running: int,
    ):
        if Processes().count > 1:
            raise ShardingError(
                "rollouts",
                found=f"{Processes().count} processes",
                expected="1: the engine generates in one process",
                fix="train on the devices of one process",
            )
        blocks = -(-longest // BLOCK)
        ropes = {layer.rope for layer in model.decoder.layers if layer.rope is not None}
        for rope in ropes:
            if depends_on_length(rope, blocks * BLOCK):
                raise ConfigError(
                    "model.rope.scaling.context_length",
                    found="none, so that training rotates by each document's length and the "
                    "engine by the longest",
                    expected=f"one length for both, such as {longest}",
                    fix="set it in the model's description",
                )
        settings = EngineConfig(
            max_sequence_length=longest,
            max_running=running,
            max_batched_tokens=max(running, MOST_TOKENS),
            max_prefill_chunk=max(running, MOST_TOKENS),
            block_size=BLOCK,
            cache_tokens=(running + 1) * blocks * BLOCK,
        )
        self._tokenizer = tokenizer
        self.engine = Engine(model, params, tokenizer, settings, scores=True)

    def draw(
        self,
        params: Params,
        version: int,
        prompts: Sequence[Sequence[int]],
        *,
        group: int,
        seeds: Sequence[int],
        temperature: float,
        max_tokens: int,
    ) -> list[list[Drawn]]:
        """Draw ``group`` completions of each prompt.

        Args:
            params: weights to draw from; not kept beyond the next call.
            version: their number.
            prompts: token ids.
            group: completions of each.
            seeds: one a prompt, see :func:`draw_seed`.
            temperature: of the softmax; 0: the most likely token always.
            max_tokens: longest completion.

        Raises:
            ContextTooLong: a prompt is longer than what the sampler was made for.
        """
        assert 1 <= group <= MAX_CHOICES
        self.engine.load(params, version)
        requests = [
            (
                prompt,
                SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed, n=group),
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        drawn = [[Drawn() for _ in range(group)] for _ in prompts]
        collection = _Collection(self.engine, drawn)
        self.engine.submit_together(requests, collection.listener, limited=False)
        collection.wait()
        for completion in (each for of_prompt in drawn for each in of_prompt):
            completion.text = self._tokenizer.decode(completion.tokens)
        return drawn

    def close(self) -> None:
        """Stop the engine's thread."""
        self.engine.close()


BLOCK = 16
MOST_TOKENS = 512


def draw_seed(seed: int, step: int, prompt: int, purpose: str = "rollout") -> int:
    """Seed of a prompt's draws; the engine adds the completion's number and the token's position.

    >>> draw_seed(0, 3, 1) == draw_seed(0, 3, 1), draw_seed(0, 3, 1) == draw_seed(0, 3, 2)
    (True, False)
    """
    return int(prng.host_stream(seed, purpose, step, prompt).integers(1 << 31))


class _Collection:
    """Takes in events on the engine's thread; the caller only waits."""

    def __init__(self, engine: Engine, drawn: list[list[Drawn]]):
        self._engine, self._drawn, self._left = engine, drawn, len(drawn)
        self._error: Exception | None = None
        self._done = threading.Event()

    def listener(self, place: int) -> Listener:
        group = self._drawn[place]

        def hear(event: TokenEvent | Exception | None) -> None:
            if isinstance(event, TokenEvent):
                assert event.score is not None
                completion = group[event.choice]
                completion.tokens.append(event.token)
                completion.log_probs.append(event.score)
                completion.versions.append(self._engine.version)
                completion.ended = event.finish_reason == "stop"
                return
            self._error = self._error or event
            self._left -= 1
            if self._left == 0:
                self._done.set()

        return hear

    def wait(self) -> None:
        if self._drawn:
            self._done.wait()
        if self._error is not None:
            raise self._error
