"""The events of one HTTP request, brought from the engine's thread to the server's loop."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from ziggurat.serve.llm.engine import Engine, Generation
from ziggurat.serve.llm.responses import ChatFormat, TextFormat, Usage
from ziggurat.serve.llm.sampling import SamplingParams
from ziggurat.serve.llm.sequence import TokenEvent


class Events:
    """The events of one HTTP request's prompts, brought from the engine's thread to this loop.

    Raises:
        RequestError: the engine refuses a prompt; none of the others is kept.
    """

    def __init__(self, engine: Engine, prompts: Sequence[list[int]], params: SamplingParams):
        self._queue: asyncio.Queue[tuple[int, TokenEvent | Exception | None]] = asyncio.Queue()
        self._loop, self._n = asyncio.get_running_loop(), params.n
        self._generations: list[Generation] = []
        try:
            for number, prompt in enumerate(prompts):
                generation = engine.submit(prompt, params, self._listener(number))
                self._generations.append(generation)
        except Exception:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Give all prompts up."""
        for generation in self._generations:
            generation.cancel()

    async def read(self) -> AsyncGenerator[tuple[int, TokenEvent]]:
        """Pairs of a choice's number and its next event; leaving the loop cancels the rest."""
        open_prompts = len(self._generations)
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
        def listen(event: TokenEvent | Exception | None) -> None:
            # The loop may be gone when a server ends; nobody waits for the event then.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (number, event))

        return listen


async def chunks(
    events: Events, form: ChatFormat | TextFormat, usage: Usage, choices: int, show_usage: bool
) -> AsyncGenerator[dict[str, Any]]:
    """The bodies of a streamed answer.

    Args:
        events: what is generated.
        form: gives the bodies.
        usage: counted up on the way.
        choices: number of choices.
        show_usage: end with the usage.
    """
    nothing = {"usage": None} if show_usage else {}
    for body in form.opening(choices):
        yield body | nothing
    async with contextlib.aclosing(events.read()) as read:
        async for index, event in read:
            usage.completion_tokens += 1
            for body in form.chunks(index, event):
                yield body | nothing
    if show_usage:
        yield form.usage_chunk(usage)
