"""Body of an answer of ``/v1/responses``, and the events of its stream."""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import msgspec

from ziggurat.core.json_types import JsonObject
from ziggurat.serve.errors import RequestError
from ziggurat.serve.http import describe
from ziggurat.serve.llm.offline import Completion
from ziggurat.serve.llm.output_text import TokenEvent, TokenLogprob
from ziggurat.serve.openai.answers import AnswerParts, Usage
from ziggurat.serve.openai.output_items import OutputItems
from ziggurat.serve.openai.response_requests import ResponseRequest


class ResponseEvents:
    """Response object and events of one answer; it is read the way chats are.

    Args:
        body: the request, whose fields the response repeats.
        answer: how the answer is to be read.
        keep: gets the finished response.
    """

    named_events: ClassVar[bool] = True

    def __init__(
        self, body: ResponseRequest, answer: AnswerParts, keep: Callable[[JsonObject], None]
    ):
        self._reader, self._keep = answer.reader(), keep
        self._items = OutputItems(answer.new_id, body.logprobs)
        self._number = 0
        self._reason: str | None = None
        self._head: JsonObject = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
            **_repeated(body),
            "temperature": answer.params.temperature,
            "top_p": answer.params.top_p,
        }

    def whole(self, completions: Sequence[Completion], usage: Usage) -> JsonObject:
        """Body of an answer that is not streamed."""
        (completion,) = completions
        for _ in self._take(completion.text, completion.logprobs, completion.finish_reason):
            pass
        return self._finished(usage)

    def opening(self, choices: int) -> Iterator[JsonObject]:
        """First events of a stream."""
        assert choices == 1
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._body("in_progress", None))

    def chunks(self, index: int, event: TokenEvent) -> Iterator[JsonObject]:
        """Events for one token."""
        for told in self._take(event.text, event.logprobs, event.finish_reason):
            yield self._numbered(told)

    def closing(self, usage: Usage, shown: bool) -> Iterator[JsonObject]:
        """Last event of a stream; it always tells the usage."""
        body = self._finished(usage)
        yield self._event(f"response.{body['status']}", response=body)

    def failed(self, error: Exception) -> Iterator[JsonObject]:
        """Last event of a stream that an error ends."""
        message = describe(error)[1]["error"]["message"]
        at_fault = isinstance(error, RequestError) and error.status < 500
        code = "invalid_prompt" if at_fault else "server_error"
        body = self._body("failed", None) | {"error": {"code": code, "message": message}}
        yield self._event("response.failed", response=body)

    def _take(
        self, text: str, logprobs: Sequence[TokenLogprob], finish_reason: str | None
    ) -> Iterator[JsonObject]:
        items = self._items
        items.add_logprobs(logprobs)
        for delta in self._reader.read(text, ended=finish_reason is not None):
            yield from items.add(delta)
        if finish_reason is not None:
            self._reason = finish_reason
            yield from items.finish("completed" if finish_reason == "stop" else "incomplete")

    def _finished(self, usage: Usage) -> JsonObject:
        status = "completed" if self._reason == "stop" else "incomplete"
        body = self._body(status, usage)
        self._keep(body)
        return body

    def _body(self, status: str, usage: Usage | None) -> JsonObject:
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        done = {"completed_at": int(time.time())} if status == "completed" else {}
        return {
            **self._head,
            "status": status,
            **done,
            "error": None,
            "incomplete_details": cut,
            "output": self._items.items,
            "usage": None if usage is None else _used(usage),
        }

    def _event(self, kind: str, **fields: object) -> JsonObject:
        return self._numbered({"type": kind, **fields})

    def _numbered(self, event: JsonObject) -> JsonObject:
        number, self._number = self._number, self._number + 1
        return event | {"sequence_number": number}


def _repeated(body: ResponseRequest) -> JsonObject:
    """Fields of a request that its response repeats, with their defaults."""
    reasoning, text = body.reasoning, body.text
    form = {"type": "text"}
    if text is not None and text.format is not None:
        form = {k: v for k, v in msgspec.to_builtins(text.format).items() if v is not None}
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "model": body.model,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": None if reasoning is None else reasoning.effort, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "text": {"format": form, "verbosity": "medium"},
        "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
        "tools": [{"parameters": None, "strict": False, **tool} for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }


def _used(usage: Usage) -> JsonObject:
    used = usage.prompt_tokens, usage.completion_tokens
    return {
        "input_tokens": used[0],
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": used[1],
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": sum(used),
    }
