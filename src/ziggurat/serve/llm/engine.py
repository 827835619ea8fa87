"""Engine with continuous batching: a bounded queue, and one thread that owns the model.

Callers submit from any thread; the condition ``_changed`` guards ``_inbox``, ``_closed`` and
``_failure``. All else, scheduler, cache and runner included, belongs to the engine's thread alone.
"""

import collections
import dataclasses
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from ziggurat.data import HuggingFaceTokenizer
from ziggurat.mesh import Layout
from ziggurat.models import LanguageModel, Params
from ziggurat.models.vision_language_model import ImageSpec
from ziggurat.serve.errors import EngineStopped, RequestError
from ziggurat.serve.llm.admission import MAX_SEQUENCES, Admission, most_tokens
from ziggurat.serve.llm.buckets import Buckets, Shape
from ziggurat.serve.llm.devices import check_divides, serving_layout
from ziggurat.serve.llm.kv_cache_manager import KVCacheManager
from ziggurat.serve.llm.output_text import TokenEvent, TokenLogprob, describe_token
from ziggurat.serve.llm.prefix_cache import HashedPrefixes, NoPrefixes
from ziggurat.serve.llm.programs import Programs
from ziggurat.serve.llm.prompt_images import PromptImages
from ziggurat.serve.llm.request import Listener, Monitor, Request, RequestSequence, Timeline
from ziggurat.serve.llm.runner import Logprobs, ModelRunner, StepHandle
from ziggurat.serve.llm.sampling import SamplingParams
from ziggurat.serve.llm.scheduler import Limits, Scheduler, SchedulerOutput
from ziggurat.serve.llm.settings import EngineConfig, cache_dimensions, context_length
from ziggurat.serve.llm.statistics import EngineStatistics, WarmUp

__all__ = [
    "Engine",
    "EngineConfig",
    "EngineStatistics",
    "Monitor",
    "Request",
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
        monitor: called at every token, step and ended request.
        scores: report with each token the log-probability with which it was drawn: at the request's
            temperature, before bias, penalties, constraints and truncation.
        mesh: devices to shard weights and cache over; default the first one alone.
        images: what images of prompts add to the model's inputs; default prompts hold none.

    Raises:
        ShardingError: query heads, experts or another dimension does not divide over the mesh;
            key/value heads and the vocabulary need not.
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
        mesh: Layout | None = None,
        images: ImageSpec | None = None,
    ):
        self.settings = settings = settings or EngineConfig()
        self.max_length = context_length(settings, model.config.max_sequence_length)
        self.tokenizer, self.monitor = tokenizer, monitor
        self.vocab_size = model.decoder.vocab_size
        cache = cache_dimensions(settings, self.max_length)
        chunk = min(settings.max_prefill_chunk, settings.max_batched_tokens, self.max_length)
        buckets = Buckets(settings.max_running, chunk)
        if mesh is not None:
            mesh = serving_layout(mesh)
            check_divides(model, mesh)
        devices = None if mesh is None else list(mesh.mesh.devices.flat)
        self.devices = 1 if mesh is None else mesh.mesh.size
        """Devices that the model is sharded over."""
        self._programs = Programs(settings.compile_cache, devices)
        storage = "compute" if settings.kv_cache_dtype == "auto" else settings.kv_cache_dtype
        more = {"scores": scores, "storage": storage, "mesh": mesh, "images": images}
        self.images = images
        self._whole = min(chunk, settings.max_batched_tokens - settings.max_running)
        """Most tokens of an image that a step is sure to have room for."""
        self._runner = ModelRunner(model, params, cache, buckets, self._programs, **more)
        self.version = 0
        """Version of the weights, as given to :meth:`load`."""
        # A recurrent layer's state at the end of a prefix is nowhere once more tokens have come.
        by_blocks = all(layer.state.shared_by == "blocks" for layer in model.decoder.layers)
        cached = settings.prefix_cache and by_blocks
        prefixes = HashedPrefixes(cache.block_size) if cached else NoPrefixes()
        sizes = (cache.blocks, cache.block_size, cache.width)
        self._kv_cache = KVCacheManager(*sizes, prefixes, shares_blocks=by_blocks)
        limits = Limits(settings.max_running, settings.max_batched_tokens, chunk)
        self._scheduler: Scheduler[RequestSequence] = Scheduler(limits, self._kv_cache)
        tokens = max(settings.max_queue_tokens, self.max_length)
        self._admission = Admission(settings.max_queue, tokens)
        self._arrivals = 0
        self._inbox: collections.deque[Request] = collections.deque()
        self._active: list[Request] = []
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
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        listener: Listener | None = None,
        images: PromptImages | None = None,
    ) -> Request:
        """Put a request of one prompt into the queue.

        Args:
            prompt: token ids.
            params: how to generate.
            listener: see :class:`Request`.
            images: of the prompt.

        Raises:
            RequestError: the prompt is empty or has an unknown id, or an image is refused.
            ContextTooLong: prompt and output do not fit.
            QueueFull: too many requests wait.
            EngineStopped: the engine is closed or has failed.
        """
        (made,) = self.submit_together([(prompt, params)], lambda place: listener, images=[images])
        return made

    def submit_together(
        self,
        prompts: Sequence[tuple[Sequence[int], SamplingParams]],
        listener: Callable[[int], Listener | None],
        *,
        limited: bool = True,
        client: str = "",
        salt: bytes = b"",
        images: Sequence[PromptImages | None] | None = None,
    ) -> list[Request]:
        """Put the prompts of one request into the queue, all of them or none.

        An idle engine with an empty prefix cache then takes the same steps whenever it is given the
        same prompts, so that their tokens agree bit for bit.

        Args:
            prompts: token ids and sampling parameters of each prompt.
            listener: makes the listener of each, by its place.
            limited: keep to the bounds of the queue.
            client: whose they are; clients take turns and have a queue each.
            salt: the prefix cache shares blocks among requests of one salt only.
            images: of each prompt; default none.

        Raises:
            RequestError: a prompt is empty or has an unknown id, an image is refused, or they are
                more than the queue can ever hold.
            ContextTooLong: a prompt and its output do not fit.
            QueueFull: too many requests wait.
            EngineStopped: the engine is closed or has failed.
        """
        completions = sum(params.n for _, params in prompts)
        if limited and completions > MAX_SEQUENCES:
            found = f"{completions} completions in one request"
            expected = f"at most {MAX_SEQUENCES}"
            raise RequestError("n times prompts", found=found, expected=expected, param="n")
        pictured = [None] * len(prompts) if images is None else list(images)
        for each in pictured:
            self._check_images(each)
        sizes = [len(prompt) for prompt, _ in prompts]
        if limited:  # before the work of making them; it is decided below
            self._admission.check_room(client, sizes)
        made = [
            Request(
                prompt,
                params,
                most_tokens(prompt, params, self.max_length, self.vocab_size),
                listener(place),
                salt,
                pictured[place],
            )
            for place, (prompt, params) in enumerate(prompts)
        ]
        with self._changed:
            if self._closed or self._failure:
                raise EngineStopped("engine", found=self._failure or "closed", expected="running")
            queued = self._admission.enter(client, sizes, limited=limited)
            for request in made:
                request.queued_in = queued
            self._take(made)
        return made

    def _check_images(self, images: PromptImages | None) -> None:
        if images is not None and self.images is None:
            raise RequestError("images", found="an image", expected="text: the model reads no more")
        if images is not None and images.whole > self._whole:
            raise RequestError(
                "images",
                found=f"{images.whole} tokens that see one another",
                expected=f"at most {self._whole} in one step",
                fix="raise max_prefill_chunk and max_batched_tokens",
            )

    def load(self, params: Params, version: int) -> None:
        """Replace the weights with others of equal shapes and types; nothing is compiled.

        Empties the prefix cache. No request may be waiting or running.

        Args:
            params: the parameters; see :meth:`ModelRunner.load`.
            version: number of these weights.
        """
        with self._changed:
            assert not self._inbox
            assert not self._active, "requests would change weights half-way"
            self._runner.load(params)
            self._kv_cache.reset_prefix_cache()
            self.version = version

    def generate(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[TokenEvent]:
        """Events of one request as they come; stopping the iteration cancels it."""
        return iter(self.submit(prompt, params))

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._inbox) + sum(r.timeline.started is None for r in list(self._active))

    @property
    def running(self) -> int:
        """Number of requests being served."""
        return sum(r.timeline.started is not None for r in list(self._active))

    @property
    def failure(self) -> Exception | None:
        """Error that stopped the engine, or ``None``."""
        return self._failure

    def statistics(self) -> EngineStatistics:
        """Figures of the queue, the cache and preemptions."""
        kv_cache, blocks = self._kv_cache, self._kv_cache.allocator
        free = blocks.free_blocks
        return EngineStatistics(
            running=self.running,
            waiting=self.waiting,
            cache_usage=1 - free / blocks.total,
            blocks_total=blocks.total,
            blocks_free=free,
            prefix_queries=kv_cache.queries,
            prefix_hits=kv_cache.hits,
            preemptions=self._scheduler.preemptions,
        )

    def close(self, *, drain: bool = False) -> None:
        """Accept no more requests and end the thread.

        Args:
            drain: finish all requests first rather than cancel them.
        """
        with self._changed:
            self._closed = True
            if not drain:
                for request in [*self._inbox, *self._active]:
                    request.cancel()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _take(self, new: Sequence[Request]) -> None:
        """Hand requests to the engine's thread, started if needed; the caller holds the lock."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
            self._thread.start()
        self._inbox += new
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
        """Wait for work and take new requests; false when the engine is to stop."""
        with self._changed:
            while not self._inbox and not self._active:
                if self._closed:
                    return False
                self._changed.wait()
            new = list(self._inbox)
            self._active += new
            self._inbox.clear()
        for request in new:
            seed = secrets.randbits(31)
            arrival, self._arrivals = self._arrivals, self._arrivals + 1
            seq = request.first_sequence(self.tokenizer, self.vocab_size, arrival, seed)
            self._scheduler.add(seq)
        return True

    def _sweep(self) -> None:
        """Remove requests that were cancelled or whose constraint failed."""
        for request in [r for r in self._active if r.cancelled or r.error is not None]:
            for seq in request.seqs:
                self._scheduler.remove(seq)
            self._end(request, None if request.cancelled else request.error)

    def _step(self, scheduled: SchedulerOutput[RequestSequence]) -> None:
        now = time.monotonic()
        for chunk in scheduled.prefill:
            request = chunk.seq.request
            if request.timeline.started is None:
                request.timeline.started = now
                request.timeline.cached_tokens = chunk.seq.computed
            self._leave_queue(request)
        buckets, decode = self._runner.buckets, scheduled.decode
        if decode:
            shape, ahead = buckets.for_decode(len(decode)), not scheduled.prefill
            self._run(shape, decode, [1] * len(decode), ahead=ahead)
        counts = [chunk.count for chunk in scheduled.prefill]
        alone, plain = [], []
        for chunk in scheduled.prefill:
            images, seq = chunk.seq.images, chunk.seq
            shown = images is not None and images.within(seq.computed, chunk.count)
            (alone if shown or seq.unscored(chunk.count) else plain).append(chunk)
        for chunks in (plain, *([chunk] for chunk in alone)):
            for shape, indexes in buckets.for_prefill([chunk.count for chunk in chunks]):
                some = [chunks[i] for i in indexes]
                self._run(shape, [chunk.seq for chunk in some], [chunk.count for chunk in some])
        if self.monitor is not None and (decode or counts):
            self.monitor.step(len(decode) + sum(counts))

    def _run(
        self, shape: Shape, seqs: list[RequestSequence], counts: list[int], ahead: bool = False
    ) -> None:
        """Run a step over some sequences, and push the sampled tokens of those fully computed.

        With ``ahead``, for decoding only, steps are chained while there is nothing else to do: each
        is handed to the device before the tokens of the one before have been copied to the host, so
        the device never waits. A sequence that ends meanwhile has computed one token for nothing,
        into a block that is its own, or nobody's until that write is done.
        """
        step = self._runner.start(shape, seqs, counts)
        while True:
            chained = ahead and self._can_chain(seqs)
            following = self._runner.chain_step(step, seqs) if chained else None
            self._collect(step, seqs, counts)
            if following is None:
                return
            if self.monitor is not None:
                self.monitor.step(len(seqs))
            ended = [seq.slot is None for seq in seqs]
            if any(ended):
                if not all(ended):
                    self._collect(following, seqs, counts)
                return
            step = following

    def _can_chain(self, seqs: list[RequestSequence]) -> bool:
        """Whether the next step decodes these sequences and no others; reserves their blocks."""
        if self._inbox or self._closed:
            return False
        for seq in seqs:
            request = seq.request
            left = request.max_tokens - len(seq.output.tokens)
            if request.cancelled or request.error is not None or left < 2:
                return False
            if not self._runner.can_chain(seq):
                return False
        return all(self._kv_cache.grow(seq, ahead=1) for seq in seqs)

    def _collect(self, step: StepHandle, seqs: list[RequestSequence], counts: list[int]) -> None:
        """Wait for a step, and push its tokens to the sequences that still run."""
        sampled = self._runner.collect(step, seqs)
        for row, (seq, count) in enumerate(zip(seqs, counts)):
            if seq.slot is None or seq.pending < count:
                continue  # it has ended or been cancelled since
            if sampled.prompt is not None:
                known = seq.request.prompt_logprobs
                seq.request.prompt_logprobs = known.after(seq.computed, sampled.prompt)
            self._kv_cache.advance(seq, count)
            if step.ready[row]:
                score = None if sampled.scores is None else sampled.scores[row]
                self._push(seq, sampled.tokens[row], sampled.logprobs.get(row), score)

    def _push(
        self, seq: RequestSequence, token: int, logprobs: Logprobs | None, score: float | None
    ) -> None:
        request = seq.request
        if not request.forked:
            others = request.other_sequences(self.tokenizer)
            self._scheduler.fork(seq, others, len(request.prompt))
        complete = seq.accept(token)
        if request.cancelled or request.error is not None:
            return  # the next step is without it
        seq.tokens.append(token)
        self._count(seq)
        logprob = None if logprobs is None else self._describe(token, logprobs, request.params)
        event = seq.output.push(token, logprob, score=score, complete=complete)
        if request.params.prompt_logprobs is not None and len(seq.output.tokens) == 1:
            event = dataclasses.replace(event, prompt_logprobs=request.prompt_logprobs)
        if event.finish_reason is not None:
            request.timeline.finish_reasons.append(event.finish_reason)
            request.seqs.remove(seq)
            self._scheduler.remove(seq)
        self._tell(request, event)
        if not request.seqs:
            self._end(request, None)

    def _count(self, seq: RequestSequence) -> None:
        """Record the time of a token."""
        now, timeline, since = time.monotonic(), seq.request.timeline, seq.since
        timeline.first_token = timeline.first_token or now
        timeline.last_token = seq.since = now
        timeline.generated_tokens += 1
        if self.monitor is not None:
            self.monitor.token(None if since is None else now - since)

    def _describe(self, token: int, found: Logprobs, params: SamplingParams) -> TokenLogprob:
        count = params.logprobs
        top = tuple(
            describe_token(self.tokenizer, number, score)
            for number, score in zip(found.ids[:count], found.top[:count])
        )
        return describe_token(self.tokenizer, token, found.chosen, top)

    def _tell(self, request: Request, event: TokenEvent | Exception | None) -> None:
        try:
            request.deliver(event)
        except Exception:  # foreign code: it must not end the other requests
            _log.exception("a listener failed; its request is cancelled")
            request.cancel()

    def _leave_queue(self, request: Request) -> None:
        """Take a request off the queue's counts: it runs, or was cancelled."""
        queued, request.queued_in = request.queued_in, None
        if queued is not None:
            self._admission.leave(queued, len(request.prompt))

    def _end(self, request: Request, error: Exception | None) -> None:
        """Report a request's end; the scheduler no longer holds any of its sequences."""
        self._leave_queue(request)
        if request in self._active:
            self._active.remove(request)
        request.seqs = []  # they hold the request: two thousand such circles take long to collect
        request.timeline.ended = time.monotonic()
        if self.monitor is not None:
            self.monitor.ended(request.timeline)
        self._tell(request, error)

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure = error
            rest = [*self._active, *self._inbox]
            self._active, self._inbox = [], collections.deque()
        for request in rest:
            self._end(request, EngineStopped("engine", found=error, expected="a running engine"))
