"""OpenAI's Responses API: conversations as items, which the server may keep.

A request becomes one to ``/v1/chat/completions`` and is read, rendered and answered as that is;
only the form of its body and of its answer is another.
"""

import bisect
import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ziggurat.core.json_types import JsonObject
from ziggurat.serve.app import ServicePart
from ziggurat.serve.errors import ContextTooLong, RequestError, short
from ziggurat.serve.http import guarded, json_response
from ziggurat.serve.openai.answers import AnswerParts
from ziggurat.serve.openai.requests import ChatRequest, with_registered
from ziggurat.serve.openai.response_events import ResponseEvents
from ziggurat.serve.openai.response_items import ItemReader
from ziggurat.serve.openai.response_requests import ResponseRequest
from ziggurat.serve.openai.response_store import ResponseStore, StoredResponse
from ziggurat.serve.openai.service import ParsedRequest, TextService

_DECODED = 4
"""Bytes that a kept conversation is charged with for each of its own while it is rendered."""
_NAMES = {
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "prompt": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}
"""Fields of chats, and what a response's request calls them."""


class UnknownResponse(RequestError):
    """Error: no answer of this id is kept for the client."""

    status = 404


class UnknownPreviousResponse(RequestError):
    """Error: the answer to continue is not kept for the client."""

    code = "previous_response_not_found"


class ResponseService:
    """Endpoints below ``/v1/responses`` of one model.

    Args:
        text: answers chats.
        store: keeps answers; default one of its own.
    """

    def __init__(self, text: TextService, store: ResponseStore | None = None):
        self._text, self._store = text, store or ResponseStore()
        self._request = with_registered(ResponseRequest)

    def part(self) -> ServicePart:
        """Routes of the endpoints."""
        path, one = "/v1/responses", "/v1/responses/{id}"
        return ServicePart(
            routes=[
                Route(path, guarded(self._create), methods=["POST"]),
                Route(one, guarded(self._retrieve), methods=["GET"]),
                Route(one, guarded(self._delete), methods=["DELETE"]),
            ]
        )

    async def _create(self, request: Request) -> Response:
        reading = _Reading(_client(request))
        try:
            return await self._text.answer(request, functools.partial(self._read, reading))
        except RequestError as error:
            raise (_renamed(error, reading.places) if reading.parsed else error) from None

    async def _retrieve(self, request: Request) -> Response:
        for name in request.query_params:
            if name == "stream" and request.query_params[name] == "false":
                continue
            raise RequestError(name, found="a query", expected="none", param=name)
        found = self._store.find(_client(request), request.path_params["id"])
        if found is None:
            raise _unknown(request)
        return Response(found.body, media_type="application/json")

    async def _delete(self, request: Request) -> Response:
        name = request.path_params["id"]
        if not self._store.delete(_client(request), name):
            raise _unknown(request)
        return json_response({"id": name, "object": "response", "deleted": True})

    def _read(self, reading: "_Reading", data: bytes) -> ParsedRequest:
        """Parse a body."""
        client, places = reading.client, reading.places
        body: ResponseRequest = self._text.read(data, self._request)
        reading.parsed = True
        before = self._previous(body, client)
        reader = ItemReader([], places)
        with contextlib.closing(self._text.off_loop.memory.open()) as held:
            held.add(_DECODED * len(before), body=False)
            reader.messages += msgspec.json.decode(before, type=list[JsonObject])
            places += ["previous_response_id"] * len(reader.messages)
            given = body.input
            if isinstance(given, str):
                given = [{"role": "user", "content": given}]
            reader.read(given or [])
            keep = self._keeper(body, client, reader.messages)
            if body.instructions is not None:
                instructions = {"role": "system", "content": body.instructions}
                reader.messages.insert(0, instructions)
                places.insert(0, "instructions")
            parsed = self._prepare(body, reader.messages, places, keep)
        kept = len(data) + (len(before) if body.store is not False else 0)
        return parsed._replace(kept=parsed.kept + kept)

    def _previous(self, body: ResponseRequest, client: str) -> bytes:
        """Messages of the conversation that a request continues, as JSON."""
        name = body.previous_response_id
        if name is None:
            return b"[]"
        stored = self._store.find(client, name)
        if stored is None:
            field = "previous_response_id"
            expected = "an answer that is kept: not store: false, deleted, too large or too old"
            found = short(repr(name))
            raise UnknownPreviousResponse(field, found=found, expected=expected, param=field)
        return stored.messages

    def _keeper(
        self, body: ResponseRequest, client: str, messages: list[JsonObject]
    ) -> Callable[[JsonObject], None]:
        """Makes what keeps an answer behind these messages."""
        if body.store is False:
            return lambda response: None
        before = msgspec.json.encode(messages)

        def keep(response: JsonObject) -> None:
            reader = ItemReader([], [])
            reader.read(response["output"])
            answer = msgspec.json.encode(reader.messages)
            middle = b"," if len(before) > 2 and len(answer) > 2 else b""
            together = before[:-1] + middle + answer[1:]
            made = StoredResponse(msgspec.json.encode(response), together)
            self._store.keep(client, response["id"], made)

        return keep

    def _prepare(
        self,
        body: ResponseRequest,
        messages: list[JsonObject],
        places: list[str],
        keep: Callable[[JsonObject], None],
    ) -> ParsedRequest:
        """Render a conversation; with ``truncation: "auto"`` without its beginning, if need be."""
        fields = body.chat_fields()

        def form(answer: AnswerParts) -> ResponseEvents:
            return ResponseEvents(body, answer, keep)

        def prepare(start: int) -> ParsedRequest:
            left = _kept(messages, start)
            chat: ChatRequest = self._text.chat_request(
                **fields, messages=[messages[i] for i in left]
            )
            chat.check()
            return self._text.prepare_chat(chat, form)

        def fits(start: int) -> bool:
            try:
                found = len(prepare(start).prompts[0])
            except ContextTooLong:
                return False
            return found + (body.max_output_tokens or 1) <= self._text.max_length

        start = 0
        if body.truncation == "auto" and not fits(0):
            starts = _beginnings(messages)
            start = starts[min(bisect.bisect_left(starts, True, key=fits), len(starts) - 1)]
            places[:] = [places[i] for i in _kept(messages, start)]
        return prepare(start)


@dataclasses.dataclass
class _Reading:
    """Progress of reading one request, for its errors."""

    client: str
    places: list[str] = dataclasses.field(default_factory=list)
    """Where the request tells of each message."""
    parsed: bool = False
    """Whether its fields are those of a response's request; then a chat's are refused in its
    words."""


def _beginnings(messages: list[JsonObject]) -> list[int]:
    """Places at which a conversation may begin: a call's result needs the call, so only users'
    messages, besides the first of all."""
    users = [i for i, message in enumerate(messages) if message.get("role") == "user"]
    return sorted({0, *users[1:]})


def _kept(messages: list[JsonObject], start: int) -> list[int]:
    """Places of the messages that stay: those from ``start`` on, and instructions before."""
    roles = ("system", "developer")
    return [i for i, m in enumerate(messages) if i >= start or m.get("role") in roles]


def _client(request: Request) -> str:
    return getattr(request.state, "client", "")


def _unknown(request: Request) -> UnknownResponse:
    name = short(repr(request.path_params["id"]))
    return UnknownResponse("id", found=name, expected="an answer that is kept", param="id")


def _renamed(error: RequestError, places: list[str]) -> RequestError:
    """An error of a chat in the words of a response's request."""

    def renamed(name: str) -> str:
        found = re.match(r"messages\[(\d+)\]", name)
        if found and int(found[1]) < len(places):
            return places[int(found[1])] + name[found.end() :]
        name = re.sub(r"^(tools\[\d+\])\.function", r"\1", name)
        return _NAMES.get(name, name)

    param = None if error.param is None else renamed(error.param)
    fields = {"found": error.found, "expected": error.expected, "fix": error.fix}
    return type(error)(renamed(error.what), **fields, param=param)
