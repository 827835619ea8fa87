"""OpenAI's text endpoints over one engine."""

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ziggurat.data.chat import variables
from ziggurat.serve.app import ServicePart
from ziggurat.serve.bodies import read
from ziggurat.serve.errors import UnknownModel
from ziggurat.serve.http import EventStream, guarded, json_response, unless_gone
from ziggurat.serve.llm import special_text
from ziggurat.serve.llm.engine import Engine
from ziggurat.serve.llm.grammar import Grammars, Maker
from ziggurat.serve.llm.image_reader import ImageReader
from ziggurat.serve.llm.metrics import Metrics
from ziggurat.serve.llm.off_loop import OffLoop
from ziggurat.serve.llm.offline import Completion
from ziggurat.serve.llm.policy import DEFAULT, RequestPolicy
from ziggurat.serve.llm.prompt_images import PromptImages
from ziggurat.serve.llm.reasoning_constraint import AfterReasoning
from ziggurat.serve.llm.reasoning_parsers import ReasoningStream, reasoning_parser_for
from ziggurat.serve.llm.render import render_chat
from ziggurat.serve.llm.sampling import SamplingParams
from ziggurat.serve.llm.structured import Form
from ziggurat.serve.llm.texts import encode
from ziggurat.serve.llm.tool_parsers import parser_for
from ziggurat.serve.openai.answers import AnswerFormat, AnswerParts, ShownPrompts, Usage
from ziggurat.serve.openai.image_parts import ImageParts
from ziggurat.serve.openai.messages import conversation
from ziggurat.serve.openai.requests import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    with_registered,
)
from ziggurat.serve.openai.responses import ChatFormat, TextFormat
from ziggurat.serve.openai.token_stream import TokenStream, chunks

SHOWN = 256
"""Bytes that a log-probability in an answer is charged with while the answer is made."""
REASONING_SWITCHES = {"enable_thinking", "thinking"}
"""Variables of published chat templates that turn reasoning on and off."""
ID = 16
"""Bytes that a token id in an answer is charged with."""


class ParsedRequest(NamedTuple):
    """Everything that outlives a request's body, which may be large and wait for long."""

    prompts: list[Sequence[int]]
    """Token ids."""
    params: SamplingParams
    form: Form | None
    """Form that the answer must have."""
    format: AnswerFormat
    """Format of the response."""
    kept: int
    """Bytes of texts that are kept until the answer is complete."""
    cache_salt: str | None
    stream: bool
    show_usage: bool
    show_usage_so_far: bool
    images: PromptImages | None = None
    """Images of the one prompt of a chat."""
    reasoning: Callable[[], ReasoningStream] | None = None
    """Makes a reader of the reasoning of a chat's answer, if it may have any."""
    after_reasoning: Callable[[Maker], Maker] | None = None
    """Puts the constraint of an answer behind its reasoning."""

    @classmethod
    def of(
        cls,
        body: ChatRequest | CompletionRequest,
        prompts: list[Sequence[int]],
        params: SamplingParams,
        form: Form | None,
        format: AnswerFormat,
        texts: Iterable[str] = (),
    ) -> "ParsedRequest":
        """Parse a request's body; ``texts`` stay in memory until the answer is complete, as stop
        texts do."""
        options = body.stream_options
        show = options is not None and bool(options.include_usage)
        often = options is not None and bool(options.continuous_usage_stats)
        kept = sum(map(len, (*params.stop, *texts)))
        if params.prompt_logprobs is not None:
            kept += SHOWN * (1 + params.prompt_logprobs) * sum(map(len, prompts))
        if body.return_token_ids:
            kept += ID * sum(map(len, prompts))
        stream = bool(body.stream)
        salt = body.cache_salt
        return cls(prompts, params, form, format, kept, salt, stream, show, show and often)


class TextService:
    """Endpoints ``/v1/completions`` and ``/v1/chat/completions`` of one model.

    Args:
        engine: generates; closed by whoever made it.
        name: the model's name in requests.
        metrics: where the engine's figures go.
        policy: how requests are read.
        off_loop: reads bodies and works on them; default one of its own.
        images: reads the pictures of messages; default none, which are refused.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        metrics: Metrics,
        policy: RequestPolicy = DEFAULT,
        off_loop: OffLoop | None = None,
        images: ImageReader | None = None,
    ):
        self._images = images
        self._engine, self._name, self._policy = engine, name, policy
        self.chat_request = with_registered(ChatRequest)
        """Type of the bodies of ``/v1/chat/completions``."""
        self._reasoning = reasoning_parser_for(engine.tokenizer, policy.reasoning_parser)
        self._completion_request = with_registered(CompletionRequest)
        self._ignore = policy.extra_fields == "ignore"
        self.off_loop = off_loop or OffLoop()
        if engine.tokenizer.chat_template is not None and not policy.control_in_messages:
            special_text.text_tokenizer(engine.tokenizer)  # takes up to a second: not in a request
        self._grammars = Grammars(engine.tokenizer, engine.vocab_size)
        self._created = int(time.time())
        metrics.watch(engine, name)

    @property
    def max_length(self) -> int:
        """Longest prompt and output together, in tokens."""
        return self._engine.max_length

    @property
    def name(self) -> str:
        """The model's name in requests."""
        return self._name

    @property
    def ignores_fields(self) -> bool:
        """Whether fields that cannot be applied are left out, rather than refused."""
        return self._ignore

    @functools.cached_property
    def reasoning_switches(self) -> frozenset[str]:
        """Variables of the chat template by which reasoning is turned on and off."""
        template = self._engine.tokenizer.chat_template
        return frozenset() if template is None else variables(template) & REASONING_SWITCHES

    def part(self) -> ServicePart:
        """Routes and model card of the endpoints."""
        post = {"/v1/completions": self._completions, "/v1/chat/completions": self._chat}
        card = {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "ziggurat",
            "max_model_len": self._engine.max_length,
        }
        return ServicePart(
            routes=[Route(path, guarded(f), methods=["POST"]) for path, f in post.items()],
            cards=[card],
            failure=lambda: self._engine.failure,
        )

    async def _completions(self, request: Request) -> Response:
        return await self.answer(request, self._read_completion)

    async def _chat(self, request: Request) -> Response:
        return await self.answer(request, self._read_chat)

    def _read_completion(self, body: bytes) -> ParsedRequest:
        completion = self.read(body, self._completion_request)
        prompts, params = completion.prompts(), completion.sampling(self._policy.sampling)
        ids = encode(
            self._engine.tokenizer,
            prompts,
            "prompt",
            special=completion.add_special_tokens is not False,
            special_tokens=self._policy.control_in_prompts,
            max_length=self._engine.max_length,
        )
        echo: list[str] = []
        if completion.echo:
            texts = [p if isinstance(p, str) else self._decode(p) for p in prompts]
            echo = [text for text in texts for _ in range(params.n)]
        shown = TextFormat(
            self._name,
            logprobs=params.logprobs is not None,
            echo=echo,
            top=params.logprobs,
            prompts=self._shown_prompts(ids, params, completion),
            prompt_alone=completion.prompt_alone,
        )
        form = completion.form(self._engine.tokenizer)
        return ParsedRequest.of(completion, ids, params, form, shown, echo)

    def _read_chat(self, body: bytes) -> ParsedRequest:
        chat = self.read(body, self.chat_request)
        return self.prepare_chat(chat, lambda answer: ChatFormat(self._name, answer))

    def prepare_chat(
        self,
        chat: ChatRequest,
        format: Callable[[AnswerParts], AnswerFormat],
        *,
        embed: bool = True,
    ) -> ParsedRequest:
        """Render a conversation, and make ready what its answer needs.

        Args:
            chat: the request.
            format: makes the format of the response.
            embed: run the tower on the pictures; a prompt that is only counted needs no features.

        Raises:
            RequestError: a field cannot be applied, or the conversation is too long.
        """
        tokenizer, policy = self._engine.tokenizer, self._policy
        params, use = chat.sampling(policy.sampling), chat.tool_use()
        reader = self._images
        parts = None if reader is None else ImageParts(reader.limits)
        messages = conversation(chat.messages, parts)
        expand, prepared = None, []
        if reader is not None and parts is not None and parts.pictures:
            prepared = reader.prepare(parts.pictures)
            expand = functools.partial(reader.expanded, images=prepared)
        ids = render_chat(
            tokenizer,
            messages,
            use.for_template() if use else None,
            chat.add_generation_prompt is not False,
            chat.template_variables(tokenizer, ignore=self._ignore),
            content_format=policy.content_format,
            special_tokens=policy.control_in_messages,
            max_length=self._engine.max_length,
            tool_call_parser=policy.tool_call_parser,
            expand=expand,
            continue_final=bool(chat.continue_final_message),
        )
        parser = parser_for(tokenizer, policy.tool_call_parser) if use else None
        if parser is not None and parser.reads_special:
            params = dataclasses.replace(params, skip_special_tokens=False)
        told = self._shown_prompts([ids], params, chat)
        reasoning, after = self._reasoning_of(ids)
        shown = format(AnswerParts(params, use, parser, told, reasoning))
        form = chat.form(tokenizer, parser)
        parsed = ParsedRequest.of(chat, [ids], params, form, shown)
        parsed = parsed._replace(reasoning=reasoning, after_reasoning=after)
        if reader is None or not prepared or not embed:
            return parsed
        return parsed._replace(images=reader.embedded(ids, prepared))

    def _reasoning_of(
        self, ids: Sequence[int]
    ) -> tuple[Callable[[], ReasoningStream] | None, Callable[[Maker], Maker] | None]:
        """Reader of the reasoning in answers to a prompt, and what puts constraints behind it."""
        parser, tokenizer = self._reasoning, self._engine.tokenizer
        if parser is None:
            return None, None
        opened, vocab = parser.opened(tokenizer, ids), self._engine.vocab_size

        def after(make: Maker) -> Maker:
            return lambda: AfterReasoning(make, parser, opened, tokenizer, vocab)

        return functools.partial(parser.stream, opened), after

    def _shown_prompts(
        self, ids: list[Sequence[int]], params: SamplingParams, body: GenerationRequest
    ) -> ShownPrompts | None:
        show_ids = bool(body.return_token_ids)
        if params.prompt_logprobs is None and not show_ids:
            return None
        top = body.prompt_logprobs
        return ShownPrompts(self._engine.tokenizer, ids, params.n, top, show_ids)

    def read(self, body: bytes, kind: type[Any]) -> Any:
        """Read a body of this type that names the served model.

        Raises:
            RequestError: it names another one, or is not of this type.
        """
        request = read(kind, body, ignore=self._ignore, most_ids=self._engine.max_length)
        if request.model != self._name:
            raise UnknownModel.of(request.model, [self._name])
        return request

    async def answer(
        self, request: Request, read_request: Callable[[bytes], ParsedRequest]
    ) -> Response:
        """Answer a request, whole or streamed.

        Args:
            request: the request.
            read_request: parses its body, on a thread.

        Raises:
            RequestError: it is refused.
            ClientGone: the client left.
        """
        async with self.off_loop.read(request) as body:
            parsed = await body.run(read_request, body.take())
            params, prompts, form = parsed.params, parsed.prompts, parsed.format
            if parsed.form is not None:
                maker = await asyncio.wrap_future(self._grammars.compile(parsed.form))
                if parsed.after_reasoning is not None:
                    maker = parsed.after_reasoning(maker)
                params = dataclasses.replace(params, constraint=maker)
            client = getattr(request.state, "client", "")
            salt = _salt(client, parsed.cache_salt)
            events = TokenStream(params.n)
            kept = body.keep(parsed.kept)
            try:
                submitted = (self._engine, prompts, params, client, salt, parsed.images)
                await body.run(events.submit, *submitted)
            except BaseException:
                kept.close()
                raise
            usage = Usage(sum(map(len, prompts)), reasoning=parsed.reasoning)
            choices = len(prompts) * params.n
            parsed = parsed._replace(prompts=[], images=None)
            del submitted
            del prompts  # the engine has them, in a quarter of the memory

        def release() -> None:
            events.cancel()
            kept.close()

        if parsed.stream:
            shown = parsed.show_usage, parsed.show_usage_so_far
            bodies = chunks(events, form, usage, choices, *shown)
            return EventStream(bodies, release, named=form.named_events)
        completions = [Completion() for _ in range(choices)]

        async def collect() -> None:
            async with contextlib.aclosing(events.read()) as read:
                async for index, event in read:
                    completions[index].add(event)
                    usage.add(index, event)
            usage.cached_tokens = events.cached_tokens

        try:
            await unless_gone(request.receive, collect())
        finally:
            release()
        if params.prompt_logprobs is not None:  # they are as many as the prompts have tokens
            return await asyncio.to_thread(lambda: json_response(form.whole(completions, usage)))
        return json_response(form.whole(completions, usage))

    def _decode(self, ids: list[int]) -> str:
        known = [i for i in ids if 0 <= i < self._engine.vocab_size]  # others are refused later
        return self._engine.tokenizer.decode(known, skip_special_tokens=False)


def _salt(client: str, given: str | None) -> bytes:
    """Prefix-cache salt of a client and of the salt that its request gives."""
    if not client and given is None:
        return b""
    parts = "\0".join([client, given or ""]).encode("utf-8", "replace")
    return hashlib.blake2b(parts, digest_size=16).digest()
