"""Output items of a response, built up from what a model writes, and the events that tell of it."""

import secrets
from collections.abc import Callable, Iterator, Sequence

from ziggurat.core.json_types import Json, JsonObject
from ziggurat.serve.llm.answer_reader import AnswerDelta
from ziggurat.serve.llm.output_text import TokenLogprob
from ziggurat.serve.llm.reasoning_parsers import ReasoningDelta
from ziggurat.serve.llm.tool_parsers import CallDelta, TextDelta
from ziggurat.serve.openai.responses import logprob_entry

_PARTS = {"message": "output_text", "reasoning": "reasoning_text"}
"""Type of the one content part of an item."""


class OutputItems:
    """Reasoning, messages and function calls of one answer, in the order in which they come.

    Each method that adds something gives the events of OpenAI's stream, without their numbers.

    Args:
        new_id: makes the id of a call.
        logprobs: whether log-probabilities are shown beside a message's text.
    """

    def __init__(self, new_id: Callable[[], str], logprobs: bool = False):
        self._new_id, self._logprobs = new_id, logprobs
        self.items: list[JsonObject] = []
        self._open: JsonObject | None = None
        self._pending: list[JsonObject] = []
        """Entries of tokens whose text is held back."""

    def add_logprobs(self, logprobs: Sequence[TokenLogprob]) -> None:
        """Add entries of the tokens that the next text is made of."""
        if self._logprobs:
            self._pending += [logprob_entry(x, list(map(logprob_entry, x.top))) for x in logprobs]

    def add(self, delta: AnswerDelta) -> Iterator[JsonObject]:
        """Add a piece of the answer."""
        if isinstance(delta, TextDelta):
            return self._text(delta.text)
        return self._reason(delta.text) if isinstance(delta, ReasoningDelta) else self._call(delta)

    def _text(self, delta: str) -> Iterator[JsonObject]:
        yield from self._begin("message")
        entries, self._pending = self._pending, []
        part = self._part()
        part["text"] += delta
        part["logprobs"] += entries
        yield self._event("output_text.delta", content_index=0, delta=delta, logprobs=entries)

    def _reason(self, delta: str) -> Iterator[JsonObject]:
        self._pending = []
        yield from self._begin("reasoning")
        self._part()["text"] += delta
        yield self._event("reasoning_text.delta", content_index=0, delta=delta)

    def _call(self, delta: CallDelta) -> Iterator[JsonObject]:
        self._pending = []
        if delta.name is not None:
            yield from self.close()
            yield from self._begin("function_call", delta.name)
        assert self._open is not None
        if delta.arguments:
            self._open["arguments"] += delta.arguments
            yield self._event("function_call_arguments.delta", delta=delta.arguments)

    def close(self, status: str = "completed") -> Iterator[JsonObject]:
        """End the open item, if there is one."""
        item = self._open
        if item is None:
            return
        if item["type"] == "function_call":
            yield self._event("function_call_arguments.done", arguments=item["arguments"])
        else:
            part = self._part()
            kind, told = part["type"], {"text": part["text"], "content_index": 0}
            if kind == "output_text":
                told["logprobs"] = part["logprobs"]
            yield self._event(f"{kind}.done", **told)
            yield self._event("content_part.done", content_index=0, part=part)
        item["status"] = status
        place = {"output_index": len(self.items) - 1}
        yield {"type": "response.output_item.done", **place, "item": item}
        self._open = None

    def finish(self, status: str) -> Iterator[JsonObject]:
        """End the answer; one without anything has an empty message."""
        if not self.items:
            yield from self._begin("message")
        yield from self.close(status)

    def _begin(self, kind: str, name: str = "") -> Iterator[JsonObject]:
        """Open an item, unless one of this type is open; ``name`` is a function's."""
        if self._open is not None and self._open["type"] == kind:
            return
        yield from self.close()
        item = self._open = _item(kind)
        if kind == "function_call":
            item |= {"call_id": self._new_id(), "name": name, "arguments": ""}
        self.items.append(item)
        place = {"output_index": len(self.items) - 1}
        yield {"type": "response.output_item.added", **place, "item": dict(item)}
        if kind != "function_call":
            part: JsonObject = {"type": _PARTS[kind], "text": ""}
            if kind == "message":
                part |= {"annotations": [], "logprobs": []}
            item["content"] = [part]
            yield self._event("content_part.added", content_index=0, part=part)

    def _part(self) -> JsonObject:
        assert self._open is not None
        return self._open["content"][0]

    def _event(self, kind: str, **fields: Json) -> JsonObject:
        assert self._open is not None
        place = {"item_id": self._open["id"], "output_index": len(self.items) - 1}
        return {"type": f"response.{kind}", **place, **fields}


def _item(kind: str) -> JsonObject:
    prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
    item: JsonObject = {"id": f"{prefix}_{secrets.token_hex(12)}", "type": kind}
    item["status"] = "in_progress"
    if kind == "function_call":
        return item
    return (
        item | ({"role": "assistant"} if kind == "message" else {"summary": []}) | {"content": []}
    )
