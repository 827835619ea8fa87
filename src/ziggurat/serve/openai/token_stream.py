"""Token events of one HTTP request, passed from the engine's thread to the event loop."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Callable, Sequence

from ziggurat.core.json_types import JsonObject
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.engine import Engine, Request
from ziggurat.serve.llm.output_text import TokenEvent
from ziggurat.serve.llm.prompt_images import PromptImages
from ziggurat.serve.llm.sampling import SamplingParams
from ziggurat.serve.openai.answers import AnswerFormat, Usage

MAX_UNREAD = 16384
"""Events that may wait for a client that reads slowly; then its request is given up."""


class ReadTooSlowly(RequestError):
    """Error: a client let more events pile up than the server keeps."""

    code = "read_too_slowly"


class TokenStream:
    """Stream of the token events of one HTTP request, from the engine's thread to this loop."""

    def __init__(self, n: int = 1):
        self._queue: asyncio.Queue[tuple[int, TokenEvent | Exception | None]] = asyncio.Queue()
        self._loop, self._n = asyncio.get_running_loop(), n
        self._requests: list[Request] = []
        self._submitted = 0
        self._given_up = False
        self.cached_tokens = 0
        """Tokens of the prompts that came from the prefix cache, once all have ended."""

    def submit(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        client: str = "",
        salt: bytes = b"",
        images: PromptImages | None = None,
    ) -> None:
        """Submit the prompts to the engine, all of them or none; from any thread.

        Raises:
            RequestError: the engine refuses them.
        """
        together = [(prompt, params) for prompt in prompts]
        pictured = None if images is None else [images]  # a chat is one prompt
        self._requests = engine.submit_together(
            together, self._listener, client=client, salt=salt, images=pictured
        )
        self._submitted = len(self._requests)

    def cancel(self) -> None:
        """Cancel all prompts, and let go of them: they hold this stream."""
        requests, self._requests = self._requests, []
        for request in requests:
            self.cached_tokens += request.timeline.cached_tokens
            request.cancel()

    async def read(self) -> AsyncGenerator[tuple[int, TokenEvent]]:
        """Pairs of a choice's number and its next event; leaving the loop cancels the rest."""
        open_prompts = self._submitted  # a cancelled stream still tells why
        try:
            while open_prompts:
                number, event = await self._queue.get()
                if isinstance(event, Exception):
                    raise event
                if event is None:
                    open_prompts -= 1
                else:
                    yield number * self._n + event.choice, event
        finally:
            self.cancel()

    def _listener(self, number: int) -> Callable[[TokenEvent | Exception | None], None]:
        take = functools.partial(self._take, number)

        def listen(event: TokenEvent | Exception | None) -> None:
            # The loop may be gone when a server ends; nobody waits for the event then.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(take, event)

        return listen

    def _take(self, number: int, event: TokenEvent | Exception | None) -> None:
        if self._given_up:
            return
        if self._queue.qsize() >= MAX_UNREAD:
            self._given_up = True
            self.cancel()
            found, expected = f"{MAX_UNREAD} events unread", "a client that reads them"
            event = ReadTooSlowly("stream", found=found, expected=expected)
        self._queue.put_nowait((number, event))


async def chunks(
    events: TokenStream,
    form: AnswerFormat,
    usage: Usage,
    choices: int,
    show_usage: bool,
    show_usage_so_far: bool = False,
) -> AsyncGenerator[JsonObject]:
    """Encode the bodies of a streamed answer.

    Args:
        events: what is generated.
        form: gives the bodies.
        usage: counted up on the way.
        choices: number of choices.
        show_usage: end with the usage.
        show_usage_so_far: tell in each body what has been used so far.
    """

    def so_far() -> JsonObject:
        shown = usage.body() if show_usage_so_far else None
        return {"usage": shown} if show_usage else {}

    for body in form.opening(choices):
        yield body | so_far()
    try:
        async with contextlib.aclosing(events.read()) as read:
            async for index, event in read:
                usage.add(index, event)
                bodies = form.chunks(index, event)
                if event.prompt_logprobs is not None:  # they are as many as the prompt has tokens
                    bodies = await asyncio.to_thread(list, bodies)
                for body in bodies:
                    yield body | so_far()
    except Exception as error:
        told = list(form.failed(error))
        for body in told:
            yield body
        if not told:
            raise
        return
    usage.cached_tokens = events.cached_tokens
    for body in form.closing(usage, show_usage):
        yield body
