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

from ziggurat.core.json_types import JsonObject
from ziggurat.serve.anthropic.message_blocks import BlockReader
from ziggurat.serve.anthropic.message_events import MessageEvents
from ziggurat.serve.anthropic.message_requests import MessageRequest, refused
from ziggurat.serve.app import ServicePart
from ziggurat.serve.errors import RequestError
from ziggurat.serve.http import describe_as_anthropic, guarded, json_response
from ziggurat.serve.openai.answers import AnswerParts
from ziggurat.serve.openai.requests import ChatRequest, with_registered
from ziggurat.serve.openai.service import ParsedRequest, TextService

_NAMES = {
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
            return await self._text.answer(request, functools.partial(self._read, reading, True))
        except RequestError as error:
            raise reading.renamed(error) from None

    async def _count(self, request: Request) -> Response:
        reading = _Reading()
        try:
            async with self._text.off_loop.read(request) as body:
                parsed = await body.run(functools.partial(self._read, reading, False), body.take())
        except RequestError as error:
            raise reading.renamed(error) from None
        return json_response({"input_tokens": len(parsed.prompts[0])})

    def _read(self, reading: "_Reading", limited: bool, data: bytes) -> ParsedRequest:
        """Parse a body; one to be answered is ``limited`` by ``max_tokens``."""
        body: MessageRequest = self._text.read(data, self._request)
        if limited and body.max_tokens is None:
            raise refused("max_tokens", "nothing", "a whole number, as Anthropic's API has it")
        reading.blocks = blocks = BlockReader()
        if body.system:
            blocks.system(body.system)
        blocks.read(body.messages)
        fields = body.chat_fields()
        if blocks.messages and blocks.messages[-1]["role"] == "assistant":
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
        self._think(body, fields)
        chat: ChatRequest = self._text.chat_request(**fields, messages=blocks.messages)
        chat.check()
        parsed = self._text.prepare_chat(chat, self._format)
        quiet = body.thinking is not None and body.thinking.type == "disabled"
        if quiet and parsed.reasoning is not None and not self._text.reasoning_switches:
            expected = "no such field: the model's chat template cannot turn its reasoning off"
            raise refused("thinking", "type disabled", expected)
        assert isinstance(parsed.format, MessageEvents)
        parsed.format.prompt_tokens = len(parsed.prompts[0])
        return parsed._replace(kept=parsed.kept + len(data))

    def _format(self, answer: AnswerParts) -> MessageEvents:
        return MessageEvents(self._text.name, answer)

    def _think(self, body: MessageRequest, fields: JsonObject) -> None:
        """Tell the template whether to reason, if the request says it."""
        if body.thinking is None:
            return
        told = dict.fromkeys(self._text.reasoning_switches, body.thinking.type != "disabled")
        fields["chat_template_kwargs"] = told | (fields["chat_template_kwargs"] or {})


@dataclasses.dataclass
class _Reading:
    """Progress of reading one request, for its errors."""

    blocks: BlockReader | None = None
    """Set when its fields are those of a message's request; then a chat's are refused in its
    words."""

    def renamed(self, error: RequestError) -> RequestError:
        """An error of a chat in the words of a message's request."""
        if self.blocks is None:
            return error
        param = None if error.param is None else self._renamed(error.param)
        told = {"found": error.found, "expected": error.expected, "fix": error.fix}
        fields = {name: str(text).replace("image_url", "image") for name, text in told.items()}
        return type(error)(self._renamed(error.what), **fields, param=param)

    def _renamed(self, name: str) -> str:
        blocks = self.blocks
        found = re.match(r"messages\[(\d+)\](?:\.content\[(\d+)\])?", name)
        if blocks is not None and found and int(found[1]) < len(blocks.messages):
            part = None if found[2] is None else int(found[2])
            rest = name[found.end() :].replace(".image_url.url", ".source")
            return blocks.found_at(int(found[1]), part) + rest
        name = re.sub(r"^(tools\[\d+\])\.function(\.parameters)?", r"\1", name)
        return _NAMES.get(name, name)
