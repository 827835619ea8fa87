"""The engine: a bounded queue of requests and the one thread that owns the model.

Requests are served one after another; batching them is the next step of this design.
"""

import collections
import dataclasses
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.models import LanguageModel, Params
from ziggurat.serve.errors import ContextTooLong, EngineStopped, QueueFull, RequestError
from ziggurat.serve.llm import sequence
from ziggurat.serve.llm.runner import ModelRunner
from ziggurat.serve.llm.sampling import Knobs, SamplingParams
from ziggurat.serve.llm.sequence import FinishReason, TokenEvent, TokenLogprob

_log = logging.getLogger(__name__)

LONGEST_DEFAULT = 8192
"""Context in tokens where neither the model nor the user asks for less: it costs memory."""


@config.node
class EngineConfig:
    """Limits of an engine."""

    max_sequence_length: int | None = None
    """Longest prompt and output together, in tokens; default the model's, at most 8192."""
    max_prefill_chunk: int = 512
    """Most prompt tokens in one step; a request can be cancelled between steps."""
    max_queue: int = 64
    """Requests that may wait; more are refused."""
    reuse_prefix: bool = False
    """Keep the last request's cache for a next one that begins alike (a chat's next turn). Faster;
    logits may then differ in the last bits from those of a prompt read whole."""

    def __post_init__(self):
        for name in ("max_sequence_length", "max_prefill_chunk", "max_queue"):
            value = getattr(self, name)
            config.require(value is None or value >= 1, name, value, "a number >= 1")


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """What :meth:`Engine.warm_up` did."""

    programs: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class EngineStatistics:
    """What :meth:`Engine.statistics` finds."""

    running: int
    """Requests being served."""
    waiting: int
    """Requests in the queue."""
    cache_usage: float
    """Part of the cache's blocks that requests hold, 0 to 1."""
    blocks_total: int
    blocks_free: int
    """Blocks that no request holds; they may still keep a prefix for later."""
    prefix_queries: int
    """Prompt tokens looked up in the prefix cache since the start."""
    prefix_hits: int
    """Those of them that were there."""
    preemptions: int
    """Generations that lost their blocks to older ones, since the start."""


@dataclasses.dataclass
class Timeline:
    """When things happened to a request (``time.monotonic``) and how many tokens it had."""

    submitted: float
    prompt_tokens: int
    max_tokens: int
    n: int
    started: float | None = None
    """Left the queue."""
    first_token: float | None = None
    last_token: float | None = None
    ended: float | None = None
    generated_tokens: int = 0
    """Of all choices; end ids count."""
    finish_reasons: list[FinishReason] = dataclasses.field(default_factory=list)
    """One for each choice that came to its end."""


@runtime_checkable
class Monitor(Protocol):
    """Hears what the engine measures, on the engine's thread."""

    def token(self, seconds_since_last: float | None) -> None:
        """A token came; ``None`` for a choice's first."""
        ...

    def ended(self, timeline: Timeline) -> None:
        """A request left the engine."""
        ...


class Generation:
    """A submitted request: iterate over its events, or cancel it.

    Without ``listener`` iterate over it: events end when all choices have, and an error of the
    engine is raised. With ``listener`` every event, then an exception or ``None``, is given to it
    on the engine's thread.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        max_tokens: int,
        listener: Callable[[TokenEvent | Exception | None], None] | None,
    ):
        self.prompt, self.params, self.max_tokens = list(prompt), params, max_tokens
        self.timeline = Timeline(time.monotonic(), len(self.prompt), max_tokens, params.n)
        self._events: queue.SimpleQueue[TokenEvent | Exception | None] = queue.SimpleQueue()
        self.deliver = listener or self._events.put
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Give the request up; the engine turns to the next one at the next token."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def __iter__(self) -> Iterator[TokenEvent]:
        try:
            while (event := self._events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.cancel()


class Engine:
    """Generates text from one model.

    Args:
        model: the model.
        params: its parameters; they are copied layer by layer, so let go of them after.
        tokenizer: the model's.
        settings: limits.
        monitor: hears of every token and every ended request.

    Raises:
        ConfigError: the context asked for is longer than the model's.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: Params,
        tokenizer: HuggingFaceTokenizer,
        settings: EngineConfig | None = None,
        monitor: Monitor | None = None,
    ):
        self.settings = settings or EngineConfig()
        longest = model.config.max_sequence_length
        self.max_length = self.settings.max_sequence_length or min(longest, LONGEST_DEFAULT)
        if self.max_length > longest:
            raise ConfigError(
                "max_sequence_length",
                found=self.max_length,
                expected=f"at most {longest}, which the model was made for",
            )
        self.tokenizer, self.monitor = tokenizer, monitor
        self.vocab_size = model.decoder.vocab_size
        self._runner = ModelRunner(model, params, self.max_length, self.settings.max_prefill_chunk)
        self._waiting: collections.deque[Generation] = collections.deque()
        self._changed = threading.Condition()
        self._running: Generation | None = None
        self._closed = False
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None

    def warm_up(self) -> WarmUp:
        """Compile all programs now rather than at the first request that needs one."""
        return WarmUp(*self._runner.warm_up())

    def submit(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        listener: Callable[[TokenEvent | Exception | None], None] | None = None,
    ) -> Generation:
        """Put a request into the queue.

        Args:
            prompt: token ids.
            params: how to generate.
            listener: see :class:`Generation`.

        Raises:
            RequestError: the prompt is empty or has an unknown id.
            ContextTooLong: prompt and output do not fit.
            QueueFull: too many requests wait.
            EngineStopped: the engine is closed or has failed.
        """
        generation = Generation(prompt, params, self._checked(prompt, params), listener)
        with self._changed:
            if self._closed or self._failure:
                raise EngineStopped("engine", found=self._failure or "closed", expected="running")
            if len(self._waiting) >= self.settings.max_queue:
                raise QueueFull(
                    "queue",
                    found=f"{len(self._waiting)} requests waiting",
                    expected=f"fewer than {self.settings.max_queue}",
                    fix="try again later",
                )
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
                self._thread.start()
            self._waiting.append(generation)
            self._changed.notify()
        return generation

    def generate(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[TokenEvent]:
        """Events of one request as they come; stopping the iteration cancels it."""
        return iter(self.submit(prompt, params))

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests being served: 0 or 1."""
        return int(self._running is not None)

    @property
    def failure(self) -> Exception | None:
        """What ended the engine, if anything did."""
        return self._failure

    def close(self) -> None:
        """Cancel all requests and end the thread."""
        with self._changed:
            self._closed = True
            for generation in [*self._waiting, *([self._running] if self._running else [])]:
                generation.cancel()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _checked(self, prompt: Sequence[int], params: SamplingParams) -> int:
        """The most tokens the request may generate."""
        if not prompt:
            raise RequestError("prompt", found="no tokens", expected="at least one", param="prompt")
        for ids, name in ((prompt, "prompt"), (params.stop_token_ids, "stop_token_ids")):
            unknown = next((i for i in ids if not 0 <= i < self.vocab_size), None)
            if unknown is not None:
                expected = f"ids from 0 to {self.vocab_size - 1}"
                raise RequestError(name, found=unknown, expected=expected, param=name)
        room = self.max_length - len(prompt)
        if room < (params.max_tokens or 1):
            wanted = f" and max_tokens {params.max_tokens}" if params.max_tokens else ""
            raise ContextTooLong(
                "context",
                found=f"{len(prompt)} prompt tokens{wanted}",
                expected=f"at most {self.max_length} tokens together, output included",
                fix="shorten the prompt" + (" or lower max_tokens" if wanted else ""),
                param="prompt" if room < 1 else "max_tokens",
            )
        return params.max_tokens or room

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._running = None
                while not self._waiting:
                    if self._closed:
                        return
                    self._changed.wait()
                generation = self._running = self._waiting.popleft()
            try:
                if not generation.cancelled:
                    self._run(generation)
            except Exception as error:  # the cache may be lost: no request can be served any more
                _log.exception("the engine failed")
                self._fail(generation, error)
                return
            self._end(generation, None)

    def _end(self, generation: Generation, error: Exception | None) -> None:
        generation.timeline.ended = time.monotonic()
        if self.monitor is not None:
            self.monitor.ended(generation.timeline)
        generation.deliver(error)

    def _fail(self, generation: Generation, error: Exception) -> None:
        with self._changed:
            self._failure, self._running = error, None
            rest = [generation, *self._waiting]
            self._waiting.clear()
        for entry in rest:
            self._end(entry, EngineStopped("engine", found=error, expected="a running engine"))

    def _run(self, generation: Generation) -> None:
        runner, params = self._runner, generation.params
        timeline = generation.timeline
        timeline.started = time.monotonic()
        seed = secrets.randbits(31)
        reuse = self.settings.reuse_prefix
        if not runner.prefill(
            generation.prompt, reuse=reuse, go_on=lambda: not generation.cancelled
        ):
            return
        logits = runner.prompt_logits
        for choice in range(params.n):
            knobs = Knobs.of(params, choice, seed)
            grown = sequence.Sequence(self.tokenizer, params, generation.max_tokens, choice)
            token, since = runner.first(len(generation.prompt), knobs, logits), None
            while True:
                since = self._count(timeline, since)
                logprob = None if params.logprobs is None else self._logprob(token, params.logprobs)
                event = grown.push(token, logprob)
                if event.finish_reason is not None:
                    timeline.finish_reasons.append(event.finish_reason)
                generation.deliver(event)
                if generation.cancelled:
                    return
                if grown.finish_reason is not None:
                    break
                token = runner.decode(knobs)

    def _count(self, timeline: Timeline, since: float | None) -> float:
        """Note a token; ``since`` is when the choice's last one came."""
        now = time.monotonic()
        timeline.first_token = timeline.first_token or now
        timeline.last_token = now
        timeline.generated_tokens += 1
        if self.monitor is not None:
            self.monitor.token(None if since is None else now - since)
        return now

    def _logprob(self, token: int, count: int) -> TokenLogprob:
        chosen, scores, ids = self._runner.log_probabilities()
        top = tuple(
            sequence.describe_token(self.tokenizer, number, score)
            for number, score in zip(ids[:count], scores[:count])
        )
        return sequence.describe_token(self.tokenizer, token, chosen, top)
