"""The HTTP application: OpenAI's endpoints over one engine, health and metrics."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ziggurat import __version__
from ziggurat.core.errors import DataError
from ziggurat.serve.errors import RequestError, UnknownModel
from ziggurat.serve.http import (
    EventStream,
    describe,
    guarded,
    json_response,
    read_body,
    unless_gone,
)
from ziggurat.serve.llm.engine import Engine, Generation
from ziggurat.serve.llm.offline import Completion, render_chat
from ziggurat.serve.llm.openai import ChatRequest, CompletionRequest, GenerationRequest, decode
from ziggurat.serve.llm.responses import ChatFormat, TextFormat, Usage
from ziggurat.serve.llm.sampling import SamplingParams
from ziggurat.serve.llm.sequence import TokenEvent
from ziggurat.serve.metrics import Metrics


class Service:
    """One engine behind OpenAI's API.

    Args:
        engine: generates; closed by whoever made it.
        name: the model's name in requests.
        draining: whether the server is about to end; ``/ready`` then says no.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        draining: Callable[[], bool] = lambda: False,
    ):
        self._engine, self._name, self._draining = engine, name, draining
        self._metrics = Metrics(name)
        self._metrics.watch(engine)
        self._created = int(time.time())

    def app(self) -> Starlette:
        """The ASGI application."""
        post = {
            "/v1/completions": self._completions,
            "/v1/chat/completions": self._chat,
        }
        get = {
            "/v1/models": self._models,
            "/v1/models/{name:path}": self._model,
            "/health": self._health,
            "/ready": self._ready,
            "/version": self._version,
            "/metrics": self._export,
        }
        routes = [Route(path, guarded(f), methods=["POST"]) for path, f in post.items()]
        routes += [Route(path, guarded(f), methods=["GET"]) for path, f in get.items()]

        async def refuse(request: Request, error: Exception) -> Response:
            status, body = describe(error)
            return json_response(body, status)

        return Starlette(routes=routes, exception_handlers={HTTPException: refuse})

    async def _completions(self, request: Request) -> Response:
        asked = await self._read(request, CompletionRequest)
        params, prompts = asked.sampling(), asked.prompts()
        ids = await run_in_threadpool(self._encode, prompts)
        echo: list[str] = []
        if asked.echo:
            texts = [p if isinstance(p, str) else self._decode(p) for p in prompts]
            echo = [text for text in texts for _ in range(params.n)]
        form = TextFormat(self._name, logprobs=params.logprobs is not None, echo=echo)
        return await self._answer(request, asked, ids, params, form)

    async def _chat(self, request: Request) -> Response:
        asked = await self._read(request, ChatRequest)
        params, messages = asked.sampling(), asked.conversation()
        ids = await run_in_threadpool(render_chat, self._engine.tokenizer, messages)
        form = ChatFormat(self._name, logprobs=params.logprobs is not None)
        return await self._answer(request, asked, [ids], params, form)

    async def _read(self, request: Request, kind: type[Any]) -> Any:
        asked = decode(kind, await read_body(request))
        self._check_model(asked.model)
        return asked

    async def _answer(
        self,
        request: Request,
        asked: GenerationRequest,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        form: ChatFormat | TextFormat,
    ) -> Response:
        events = Events(self._engine, prompts, params)
        usage = Usage(sum(map(len, prompts)))
        if asked.stream:
            options = asked.stream_options
            show_usage = options is not None and bool(options.include_usage)
            choices = len(prompts) * params.n
            return EventStream(_chunks(events, form, usage, choices, show_usage), events.cancel)
        completions = [Completion() for _ in range(len(prompts) * params.n)]

        async def collect() -> None:
            async with contextlib.aclosing(events.read()) as read:
                async for index, event in read:
                    completions[index].add(event)
                    usage.completion_tokens += 1

        try:
            await unless_gone(request.receive, collect())
        finally:
            events.cancel()
        return json_response(form.whole(completions, usage))

    def _encode(self, prompts: Sequence[str | list[int]]) -> list[list[int]]:
        tokenizer = self._engine.tokenizer
        try:
            return [
                tokenizer.encode(p, add_special_tokens=True) if isinstance(p, str) else p
                for p in prompts
            ]
        except DataError as error:
            raise RequestError(
                "prompt", found=error.found, expected=error.expected, param="prompt"
            ) from None

    def _decode(self, ids: list[int]) -> str:
        known = [i for i in ids if 0 <= i < self._engine.vocab_size]  # others are refused later
        return self._engine.tokenizer.decode(known, skip_special_tokens=False)

    def _check_model(self, name: str) -> None:
        if name != self._name:
            raise UnknownModel(
                "model", found=repr(name), expected=f"the model served, {self._name}", param="model"
            )

    def _card(self) -> dict[str, Any]:
        return {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "ziggurat",
            "max_model_len": self._engine.max_length,
        }

    async def _models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [self._card()]})

    async def _model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return json_response(self._card())

    async def _health(self, request: Request) -> Response:
        failure = self._engine.failure
        if failure is not None:
            return json_response({"status": "failed", "reason": str(failure)}, 503)
        return json_response({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        ready = self._engine.failure is None and not self._draining()
        return json_response({"ready": ready}, 200 if ready else 503)

    async def _version(self, request: Request) -> Response:
        return json_response({"version": __version__})

    async def _export(self, request: Request) -> Response:
        return Response(self._metrics.text(), headers={"content-type": self._metrics.content_type})


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


async def _chunks(
    events: Events, form: ChatFormat | TextFormat, usage: Usage, choices: int, show_usage: bool
) -> AsyncGenerator[dict[str, Any]]:
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
