"""OpenAI's text endpoints over one engine."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ziggurat.serve.app import Part
from ziggurat.serve.bodies import read
from ziggurat.serve.errors import UnknownModel
from ziggurat.serve.http import EventStream, guarded, json_response, read_body, unless_gone
from ziggurat.serve.llm.engine import Engine
from ziggurat.serve.llm.events import Events, chunks
from ziggurat.serve.llm.grammar import Grammars
from ziggurat.serve.llm.messages import conversation
from ziggurat.serve.llm.metrics import Metrics
from ziggurat.serve.llm.offline import Completion
from ziggurat.serve.llm.openai import ChatRequest, CompletionRequest
from ziggurat.serve.llm.render import render_chat
from ziggurat.serve.llm.responses import ChatFormat, TextFormat, Usage
from ziggurat.serve.llm.texts import encode


class TextService:
    """``/v1/completions`` and ``/v1/chat/completions``.

    Args:
        engine: generates; closed by whoever made it.
        name: the model's name in requests.
        metrics: where the engine's figures go.
    """

    def __init__(self, engine: Engine, name: str, metrics: Metrics):
        self._engine, self._name = engine, name
        self._grammars = Grammars(engine.tokenizer, engine.vocab_size)
        self._created = int(time.time())
        metrics.watch(engine, name)

    def part(self) -> Part:
        """What it adds to the application."""
        post = {"/v1/completions": self._completions, "/v1/chat/completions": self._chat}
        card = {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "ziggurat",
            "max_model_len": self._engine.max_length,
        }
        return Part(
            routes=[Route(path, guarded(f), methods=["POST"]) for path, f in post.items()],
            cards=[card],
            failure=lambda: self._engine.failure,
        )

    async def _completions(self, request: Request) -> Response:
        asked = await self._read(request, CompletionRequest)
        prompts, params = asked.prompts(), asked.sampling()
        special = asked.add_special_tokens is not False
        ids = await run_in_threadpool(
            encode, self._engine.tokenizer, prompts, "prompt", special=special
        )
        echo: list[str] = []
        if asked.echo:
            texts = [p if isinstance(p, str) else self._decode(p) for p in prompts]
            echo = [text for text in texts for _ in range(params.n)]
        form = TextFormat(self._name, logprobs=params.logprobs is not None, echo=echo)
        return await self._answer(request, asked, ids, form)

    async def _chat(self, request: Request) -> Response:
        asked = await self._read(request, ChatRequest)
        params, use, messages = asked.sampling(), asked.tool_use(), conversation(asked.messages)
        ids = await run_in_threadpool(
            render_chat,
            self._engine.tokenizer,
            messages,
            use.for_template() if use else None,
            asked.add_generation_prompt is not False,
            asked.chat_template_kwargs,
        )
        form = ChatFormat(self._name, logprobs=params.logprobs is not None, tools=use)
        return await self._answer(request, asked, [ids], form)

    async def _read(self, request: Request, kind: type[Any]) -> Any:
        asked = read(kind, await read_body(request))
        if asked.model != self._name:
            raise UnknownModel.of(asked.model, [self._name])
        return asked

    async def _answer(
        self,
        request: Request,
        asked: ChatRequest | CompletionRequest,
        prompts: Sequence[list[int]],
        form: ChatFormat | TextFormat,
    ) -> Response:
        params, demanded = asked.sampling(), asked.form(self._engine.tokenizer)
        if demanded is not None:
            maker = await asyncio.wrap_future(self._grammars.compile(demanded))
            params = dataclasses.replace(params, constraint=maker)
        events = Events(self._engine, prompts, params)
        usage, choices = Usage(sum(map(len, prompts))), len(prompts) * params.n
        if asked.stream:
            options = asked.stream_options
            show_usage = options is not None and bool(options.include_usage)
            return EventStream(chunks(events, form, usage, choices, show_usage), events.cancel)
        completions = [Completion() for _ in range(choices)]

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

    def _decode(self, ids: list[int]) -> str:
        known = [i for i in ids if 0 <= i < self._engine.vocab_size]  # others are refused later
        return self._engine.tokenizer.decode(known, skip_special_tokens=False)
