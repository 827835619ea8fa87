"""The engine: a bounded queue of requests, and the one thread that owns the model and serves them
together, step by step."""

import collections
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from ziggurat.data import HuggingFaceTokenizer
from ziggurat.models import LanguageModel, Params
from ziggurat.serve.errors import EngineStopped, RequestError
from ziggurat.serve.llm import sequence
from ziggurat.serve.llm.admission import MAX_SEQUENCES, Admission, most_tokens
from ziggurat.serve.llm.buckets import Buckets, Shape
from ziggurat.serve.llm.generation import Choice, Generation, Listener, Monitor, Timeline
from ziggurat.serve.llm.pages import Pages
from ziggurat.serve.llm.prefix_cache import HashedPrefixes, NoPrefixes
from ziggurat.serve.llm.programs import Programs
from ziggurat.serve.llm.runner import Flight, Logprobs, ModelRunner
from ziggurat.serve.llm.sampling import SamplingParams
from ziggurat.serve.llm.scheduler import Limits, Plan, Scheduler
from ziggurat.serve.llm.sequence import TokenEvent, TokenLogprob
from ziggurat.serve.llm.settings import EngineConfig, cache_dimensions, context_length
from ziggurat.serve.llm.statistics import EngineStatistics, WarmUp

__all__ = [
    "Engine",
    "EngineConfig",
    "EngineStatistics",
    "Generation",
    "Monitor",
    "Timeline",
    "WarmUp",
]

_log = logging.getLogger(__name__)


class Engine:
    """Generates text from one model, for many requests at once.

    Args:
        model: the model.
        params: its parameters; they are copied layer by layer, so let go of them after.
        tokenizer: the model's.
        settings: limits.
        monitor: hears of every token and every ended request.
        scores: tell with each token the log-probability with which it was drawn: at the request's
            temperature, before bias, penalties, constraints and truncation.

    Raises:
        ConfigError: the context asked for is longer than the model's, or than the cache.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: Params,
        tokenizer: HuggingFaceTokenizer,
        settings: EngineConfig | None = None,
        monitor: Monitor | None = None,
        *,
        scores: bool = False,
    ):
        self.settings = settings = settings or EngineConfig()
        self.max_length = context_length(settings, model.config.max_sequence_length)
        self.tokenizer, self.monitor = tokenizer, monitor
        self.vocab_size = model.decoder.vocab_size
        cache = cache_dimensions(settings, self.max_length)
        chunk = min(settings.max_prefill_chunk, settings.max_batched_tokens, self.max_length)
        buckets = Buckets(settings.max_running, chunk)
        self._programs = Programs(settings.compile_cache)
        self._runner = ModelRunner(model, params, cache, buckets, self._programs, scores)
        self.version = 0
        """Of the weights, as :meth:`load` was told."""
        prefixes = HashedPrefixes(cache.block_size) if settings.prefix_cache else NoPrefixes()
        self._pages = Pages(cache.blocks, cache.block_size, cache.width, prefixes)
        limits = Limits(settings.max_running, settings.max_batched_tokens, chunk)
        self._scheduler: Scheduler[Choice] = Scheduler(limits, self._pages)
        tokens = max(settings.max_queue_tokens, self.max_length)
        self._admission = Admission(settings.max_queue, tokens)
        self._arrivals = 0
        self._inbox: collections.deque[Generation] = collections.deque()
        self._active: list[Generation] = []
        self._changed = threading.Condition()
        self._closed = False
        self._failure: Exception | None = None
        self._thread: threading.Thread | None = None

    def warm_up(self, told: Callable[[str, int, int], None] | None = None) -> WarmUp:
        """Compile all programs now rather than at the first request that needs one.

        Args:
            told: called before each program with its name, how many are done, and all of them.
        """
        programs, seconds = self._programs.compile_all(told)
        return WarmUp(programs, seconds, self._programs.loaded)

    def submit(
        self, prompt: Sequence[int], params: SamplingParams, listener: Listener | None = None
    ) -> Generation:
        """Put a request of one prompt into the queue.

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
        (made,) = self.submit_together([(prompt, params)], lambda place: listener)
        return made

    def submit_together(
        self,
        requests: Sequence[tuple[Sequence[int], SamplingParams]],
        listener: Callable[[int], Listener | None],
        *,
        limited: bool = True,
        client: str = "",
        salt: bytes = b"",
    ) -> list[Generation]:
        """Put the prompts of one request into the queue, all of them or none.

        An idle engine with an empty prefix cache then takes the same steps whenever it is given the
        same prompts, so that their tokens agree bit for bit.

        Args:
            requests: token ids of each prompt, and how to generate.
            listener: makes the listener of each, by its place.
            limited: keep to the bounds of the queue.
            client: whose they are; clients take turns and have a queue each.
            salt: the prefix cache shares blocks among requests of one salt only.

        Raises:
            RequestError: a prompt is empty or has an unknown id, or they are more than the queue
                can ever hold.
            ContextTooLong: a prompt and its output do not fit.
            QueueFull: too many requests wait.
            EngineStopped: the engine is closed or has failed.
        """
        sequences = sum(params.n for _, params in requests)
        if limited and sequences > MAX_SEQUENCES:
            found = f"{sequences} completions in one request"
            expected = f"at most {MAX_SEQUENCES}"
            raise RequestError("n times prompts", found=found, expected=expected, param="n")
        made = [
            Generation(
                prompt,
                params,
                most_tokens(prompt, params, self.max_length, self.vocab_size),
                listener(place),
                salt,
            )
            for place, (prompt, params) in enumerate(requests)
        ]
        with self._changed:
            if self._closed or self._failure:
                raise EngineStopped("engine", found=self._failure or "closed", expected="running")
            sizes = [len(generation.prompt) for generation in made]
            queued = self._admission.enter(client, sizes, limited=limited)
            for generation in made:
                generation.queued_in = queued
            self._take(made)
        return made

    def load(self, params: Params, version: int) -> None:
        """Go on with other weights, of the same shapes and types; nothing is compiled.

        What the prefix cache holds is forgotten. Nothing may be waiting or running.

        Args:
            params: the parameters; see :meth:`ModelRunner.load`.
            version: what they are to be called.
        """
        with self._changed:
            assert not self._inbox
            assert not self._active, "requests would change weights half-way"
            self._runner.load(params)
            self._pages.forget_prefixes()
            self.version = version

    def generate(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[TokenEvent]:
        """Events of one request as they come; stopping the iteration cancels it."""
        return iter(self.submit(prompt, params))

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._inbox) + sum(g.timeline.started is None for g in list(self._active))

    @property
    def running(self) -> int:
        """Requests being served."""
        return sum(g.timeline.started is not None for g in list(self._active))

    @property
    def failure(self) -> Exception | None:
        """What ended the engine, if anything did."""
        return self._failure

    def statistics(self) -> EngineStatistics:
        """What the engine holds now, and what it has counted."""
        blocks, pages = self._pages.allocator, self._pages
        free = blocks.free
        return EngineStatistics(
            running=self.running,
            waiting=self.waiting,
            cache_usage=1 - free / blocks.total,
            blocks_total=blocks.total,
            blocks_free=free,
            prefix_queries=pages.queries,
            prefix_hits=pages.hits,
            preemptions=self._scheduler.preemptions,
        )

    def close(self, *, drain: bool = False) -> None:
        """Take no more requests and end the thread.

        Args:
            drain: finish all requests first rather than cancel them.
        """
        with self._changed:
            self._closed = True
            if not drain:
                for generation in [*self._inbox, *self._active]:
                    generation.cancel()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _take(self, generations: Sequence[Generation]) -> None:
        """Hand requests to the thread, which is started if need be; the lock is held."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
            self._thread.start()
        self._inbox += generations
        self._changed.notify()

    def _serve(self) -> None:
        try:
            while self._take_in():
                self._sweep()
                self._step(self._scheduler.plan())
        except Exception as error:  # the cache may be lost: no request can be served any more
            _log.exception("the engine failed")
            self._fail(error)

    def _take_in(self) -> bool:
        """Wait for something to do and take new requests; says no when the engine is to end."""
        with self._changed:
            while not self._inbox and not self._active:
                if self._closed:
                    return False
                self._changed.wait()
            new = list(self._inbox)
            self._active += new
            self._inbox.clear()
        for generation in new:
            seed = secrets.randbits(31)
            arrival, self._arrivals = self._arrivals, self._arrivals + 1
            lane = generation.first_lane(self.tokenizer, self.vocab_size, arrival, seed)
            self._scheduler.add(lane)
        return True

    def _sweep(self) -> None:
        """Let go of requests that were cancelled or whose constraint failed."""
        for generation in [g for g in self._active if g.cancelled or g.error is not None]:
            for lane in generation.lanes:
                self._scheduler.remove(lane)
            self._end(generation, None if generation.cancelled else generation.error)

    def _step(self, plan: Plan[Choice]) -> None:
        now = time.monotonic()
        for chunk in plan.prefill:
            generation = chunk.lane.generation
            generation.timeline.started = generation.timeline.started or now
            self._leave_queue(generation)
        buckets, decode = self._runner.buckets, plan.decode
        if decode:
            shape, alone = buckets.for_decode(len(decode)), not plan.prefill
            self._run(shape, decode, [1] * len(decode), ahead=alone)
        counts = [chunk.count for chunk in plan.prefill]
        for shape, indexes in buckets.for_prefill(counts):
            self._run(shape, [plan.prefill[i].lane for i in indexes], [counts[i] for i in indexes])
        if self.monitor is not None and (decode or counts):
            self.monitor.step(len(decode) + sum(counts))

    def _run(
        self, shape: Shape, lanes: list[Choice], counts: list[int], ahead: bool = False
    ) -> None:
        """Read tokens of some lanes, and push the next one of those that have no more to read.

        With ``ahead``, which is for lanes that decode, go on for as long as nothing else is to be
        done: each step is handed to the device before the tokens of the one before have come back,
        so that it does not wait while they are looked at. A lane that comes to its end there has
        one token read for nothing, into a block that is its own or nobody's until that is done.
        """
        flight = self._runner.start(shape, lanes, counts)
        while True:
            goes_on = ahead and self._goes_on(lanes)
            following = self._runner.follow(flight, lanes) if goes_on else None
            self._land(flight, lanes, counts)
            if following is None:
                return
            if self.monitor is not None:
                self.monitor.step(len(lanes))
            ended = [lane.slot is None for lane in lanes]
            if any(ended):
                if not all(ended):
                    self._land(following, lanes, counts)
                return
            flight = following

    def _goes_on(self, lanes: list[Choice]) -> bool:
        """Whether all lanes surely read a token more next, and only they; then they have room."""
        if self._inbox or self._closed:
            return False
        for lane in lanes:
            generation = lane.generation
            left = generation.max_tokens - len(lane.output.tokens)
            if generation.cancelled or generation.error is not None or left < 2:
                return False
            if not self._runner.can_follow(lane):
                return False
        return all(self._pages.grow(lane, ahead=1) for lane in lanes)

    def _land(self, flight: Flight, lanes: list[Choice], counts: list[int]) -> None:
        """Wait for a step and tell what came of it to the lanes that are still there."""
        drawn = self._runner.finish(flight, lanes)
        for row, (lane, count) in enumerate(zip(lanes, counts)):
            if lane.slot is None or lane.pending < count:
                continue  # it has ended or been cancelled since
            self._pages.advance(lane, count)
            if flight.ready[row]:
                score = None if drawn.scores is None else drawn.scores[row]
                self._push(lane, drawn.tokens[row], drawn.logprobs.get(row), score)

    def _push(
        self, lane: Choice, token: int, logprobs: Logprobs | None, score: float | None
    ) -> None:
        generation = lane.generation
        if not generation.forked:
            others = generation.other_lanes(self.tokenizer)
            self._scheduler.fork(lane, others, len(generation.prompt))
        complete = lane.accept(token)
        if generation.cancelled or generation.error is not None:
            return  # the next step is without it
        lane.tokens.append(token)
        self._count(lane)
        logprob = None if logprobs is None else self._describe(token, logprobs, generation.params)
        event = lane.output.push(token, logprob, score=score, complete=complete)
        if event.finish_reason is not None:
            generation.timeline.finish_reasons.append(event.finish_reason)
            generation.lanes.remove(lane)
            self._scheduler.remove(lane)
        self._tell(generation, event)
        if not generation.lanes:
            self._end(generation, None)

    def _count(self, lane: Choice) -> None:
        """Note a token's time."""
        now, timeline, since = time.monotonic(), lane.generation.timeline, lane.since
        timeline.first_token = timeline.first_token or now
        timeline.last_token = lane.since = now
        timeline.generated_tokens += 1
        if self.monitor is not None:
            self.monitor.token(None if since is None else now - since)

    def _describe(self, token: int, found: Logprobs, params: SamplingParams) -> TokenLogprob:
        count = params.logprobs
        top = tuple(
            sequence.describe_token(self.tokenizer, number, score)
            for number, score in zip(found.ids[:count], found.top[:count])
        )
        return sequence.describe_token(self.tokenizer, token, found.chosen, top)

    def _tell(self, generation: Generation, event: TokenEvent | Exception | None) -> None:
        try:
            generation.deliver(event)
        except Exception:  # foreign code: it must not end the other requests
            _log.exception("a listener failed; its request is cancelled")
            generation.cancel()

    def _leave_queue(self, generation: Generation) -> None:
        """A prompt runs or has been given up: it takes no room in the queue any more."""
        queued, generation.queued_in = generation.queued_in, None
        if queued is not None:
            self._admission.leave(queued, len(generation.prompt))

    def _end(self, generation: Generation, error: Exception | None) -> None:
        """Report a request's end; none of its lanes is with the scheduler any more."""
        self._leave_queue(generation)
        if generation in self._active:
            self._active.remove(generation)
        generation.timeline.ended = time.monotonic()
        if self.monitor is not None:
            self.monitor.ended(generation.timeline)
        self._tell(generation, error)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = error
            rest = [*self._active, *self._inbox]
            self._active, self._inbox = [], collections.deque()
        for generation in rest:
            self._end(generation, EngineStopped("engine", found=error, expected="a running engine"))
