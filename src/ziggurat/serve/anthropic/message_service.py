"""Anthropic's Messages API.

A request becomes one to ``/v1/chat/completions`` and is read, rendered and answered as that is;
only the form of its body and of its answer is another.
"""

import dataclasses
import functools
import re

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ziggurat.serve.anthropic.message_blocks import BlockReader
from ziggurat.serve.anthropic.message_events import MessageEvents
from ziggurat.serve.anthropic.message_requests import MessageRequest, Thinking
from ziggurat.serve.app import ServicePart
from ziggurat.serve.errors import RequestError, refused
from ziggurat.serve.http import describe_as_anthropic, guarded, json_response
from ziggurat.serve.openai.answers import AnswerParts
from ziggurat.serve.openai.requests import ChatRequest, with_registered
from ziggurat.serve.openai.service import ParsedRequest, TextService

_NAMES = {
    "continue_final_message": "messages",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "prompt": "messages",
}
"""Fields of chats, and what a message's request calls them."""


class MessageService:
    """Endpoints ``/v1/messages`` and ``/v1/messages/count_tokens`` of one model.

    Args:
        text: answers chats.
    """

    def __init__(self, text: TextService):
        self._text = text
        self._request = with_registered(MessageRequest)

    def part(self) -> ServicePart:
        """Routes of the endpoints."""
        made = {"/v1/messages": self._create, "/v1/messages/count_tokens": self._count}
        return ServicePart(
            routes=[
                Route(path, guarded(handler, describe_as_anthropic), methods=["POST"])
                for path, handler in made.items()
            ]
        )

    async def _create(self, request: Request) -> Response:
        reading = _Reading()
        try:
            return await self._text.answer(request, functools.partial(self._read, reading))
        except RequestError as error:
            raise reading.renamed(error) from None

    async def _count(self, request: Request) -> Response:
        reading = _Reading()
        try:
            async with self._text.off_loop.read(request) as body:
                counted = await body.run(functools.partial(self._counted, reading), body.take())
        except RequestError as error:
            raise reading.renamed(error) from None
        return json_response({"input_tokens": counted})

    def _counted(self, reading: "_Reading", data: bytes) -> int:
        body: MessageRequest = self._text.read(data, self._request)
        return len(self._prepared(reading, body, embed=False).prompts[0])

    def _read(self, reading: "_Reading", data: bytes) -> ParsedRequest:
        """Parse a body that is to be answered."""
        body: MessageRequest = self._text.read(data, self._request)
        if body.max_tokens is None:
            raise refused("max_tokens", "nothing", "a whole number, as Anthropic's API has it")
        parsed = self._prepared(reading, body)
        assert isinstance(parsed.format, MessageEvents)
        parsed.format.prompt_tokens = len(parsed.prompts[0])
        return parsed

    def _prepared(
        self, reading: "_Reading", body: MessageRequest, *, embed: bool = True
    ) -> ParsedRequest:
        blocks = BlockReader()
        reading.places, reading.parts = blocks.places, blocks.parts
        if body.system:
            blocks.system(body.system)
        blocks.read(body.messages)
        fields = body.chat_fields()
        if blocks.messages and blocks.messages[-1]["role"] == "assistant":
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
        if body.thinking is not None:
            told = dict.fromkeys(self._text.reasoning_switches, body.thinking.type != "disabled")
            fields["chat_template_kwargs"] = told | (fields["chat_template_kwargs"] or {})
        chat: ChatRequest = self._text.chat_request(**fields, messages=blocks.messages)
        chat.check()
        parsed = self._text.prepare_chat(chat, self._format, embed=embed)
        self._check_thinking(body.thinking, parsed.reasoning is not None)
        return parsed

    def _check_thinking(self, thinking: Thinking | None, reasons: bool) -> None:
        """Refuse to turn reasoning on or off where the model cannot do so."""
        kind = None if thinking is None else thinking.type
        if self._text.ignores_fields or kind in (None, "adaptive"):
            return
        if kind == "enabled" and not reasons:
            expected = "no such field: no reasoning is read of this model's answers"
            raise refused("thinking", "type enabled", expected)
        if kind == "disabled" and reasons and not self._text.reasoning_switches:
            expected = "no such field: the model's chat template cannot turn its reasoning off"
            raise refused("thinking", "type disabled", expected)

    def _format(self, answer: AnswerParts) -> MessageEvents:
        return MessageEvents(self._text.name, answer)


@dataclasses.dataclass
class _Reading:
    """Progress of reading one request, for its errors."""

    places: list[str] | None = None
    """Where the request tells of each message, once its fields are read: then a chat's are refused
    in its words."""
    parts: list[list[str]] = dataclasses.field(default_factory=list)
    """Where it tells of each part of a message's content."""

    def renamed(self, error: RequestError) -> RequestError:
        """An error of a chat in the words of a message's request."""
        if self.places is None:
            return error
        param = None if error.param is None else self._renamed(error.param)
        told = {"found": error.found, "expected": error.expected, "fix": error.fix}
        fields = {name: str(text).replace("image_url", "image") for name, text in told.items()}
        return type(error)(self._renamed(error.what), **fields, param=param)

    def _renamed(self, name: str) -> str:
        found = re.match(r"messages\[(\d+)\](?:\.content\[(\d+)\])?", name)
        if self.places is not None and found and int(found[1]) < len(self.places):
            message, part = int(found[1]), int(found[2] or 0)
            rest = name[found.end() :].replace(".image_url.url", ".source")
            if found[2] is not None and part < len(self.parts[message]):
                return self.parts[message][part] + rest
            return self.places[message] + rest
        name = re.sub(r"^(tools\[\d+\])\.function(\.parameters)?", r"\1", name)
        return _NAMES.get(name, name)
