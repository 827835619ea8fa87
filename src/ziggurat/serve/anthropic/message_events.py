"""Body of an answer of ``/v1/messages``, and the events of its stream."""

import secrets
from collections.abc import Iterator, Sequence
from typing import ClassVar

from ziggurat.core.json_types import JsonObject
from ziggurat.serve.http import describe_as_anthropic
from ziggurat.serve.llm.answer_reader import AnswerDelta
from ziggurat.serve.llm.offline import Completion
from ziggurat.serve.llm.output_text import TokenEvent
from ziggurat.serve.llm.reasoning_parsers import ReasoningDelta
from ziggurat.serve.llm.tool_parsers import TextDelta
from ziggurat.serve.openai.answers import AnswerParts, Usage
from ziggurat.serve.openai.messages import read_arguments

_PIECES = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}
"""Types of the deltas of a block."""


class MessageEvents:
    """Message object and events of one answer; it is read the way chats are.

    Args:
        model: the model's name.
        answer: how the answer is to be read.
    """

    named_events: ClassVar[bool] = True

    def __init__(self, model: str, answer: AnswerParts):
        self._reader, self._new_id = answer.reader(), answer.new_id
        self._model, self._id = model, f"msg_{secrets.token_hex(12)}"
        self._content: list[JsonObject] = []
        self._open = False
        """Whether the last block may grow."""
        self._arguments = self._space = ""
        """Arguments of the open call, and white space that is text only if more text follows."""
        self._reason: str | None = None
        self._stop_text: str | None = None
        self.prompt_tokens = 0
        """Set before the stream begins, since its first event tells them."""

    def whole(self, completions: Sequence[Completion], usage: Usage) -> JsonObject:
        """Body of an answer that is not streamed."""
        (completion,) = completions
        for _ in self._take(completion.text, completion.finish_reason, completion.stop_text):
            pass
        return self._body(usage)

    def opening(self, choices: int) -> Iterator[JsonObject]:
        """First event of a stream."""
        assert choices == 1
        yield {"type": "message_start", "message": self._body(Usage(self.prompt_tokens))}

    def chunks(self, index: int, event: TokenEvent) -> Iterator[JsonObject]:
        """Events for one token."""
        return self._take(event.text, event.finish_reason, event.stop_text)

    def closing(self, usage: Usage, shown: bool) -> Iterator[JsonObject]:
        """Last events of a stream; they always tell the usage."""
        ended = {"stop_reason": self._reason, "stop_sequence": self._stop_text}
        yield {"type": "message_delta", "delta": ended, "usage": _used(usage)}
        yield {"type": "message_stop"}

    def failed(self, error: Exception) -> Iterator[JsonObject]:
        """Last event of a stream that an error ends."""
        yield describe_as_anthropic(error)[1]

    def _take(
        self, text: str, finish_reason: str | None, stop_text: str | None
    ) -> Iterator[JsonObject]:
        for delta in self._reader.read(text, ended=finish_reason is not None):
            yield from self._add(delta)
        if finish_reason is not None:
            yield from self._close()
            if finish_reason == "length":
                self._reason = "max_tokens"
            elif self._reader.called:
                self._reason = "tool_use"
            elif stop_text is not None:
                self._reason, self._stop_text = "stop_sequence", stop_text
            else:
                self._reason = "end_turn"

    def _add(self, delta: AnswerDelta) -> Iterator[JsonObject]:
        if isinstance(delta, TextDelta):
            self._space += delta.text
            if self._space.strip() or self._is_open("text"):
                piece, self._space = self._space, ""
                yield from self._grow("text", "text", piece)
        elif isinstance(delta, ReasoningDelta):
            yield from self._grow("thinking", "thinking", delta.text)
        else:
            if delta.name is not None:
                yield from self._close()
                named = {"id": self._new_id(), "name": delta.name, "input": {}}
                yield from self._begin({"type": "tool_use", **named})
            if delta.arguments:
                self._arguments += delta.arguments
                yield self._delta("partial_json", delta.arguments)

    def _grow(self, kind: str, field: str, piece: str) -> Iterator[JsonObject]:
        """Add a piece to a block of text, a new one unless one of this type is open."""
        if not self._is_open(kind):
            yield from self._close()
            signed = {"signature": ""} if kind == "thinking" else {}
            yield from self._begin({"type": kind, field: "", **signed})
        self._content[-1][field] += piece
        yield self._delta(field, piece)

    def _begin(self, block: JsonObject) -> Iterator[JsonObject]:
        self._content.append(block)
        self._open = True
        yield self._placed("content_block_start", content_block=dict(block))

    def _delta(self, field: str, piece: str) -> JsonObject:
        kind = _PIECES[self._content[-1]["type"]]
        return self._placed("content_block_delta", delta={"type": kind, field: piece})

    def _close(self) -> Iterator[JsonObject]:
        """End the open block, if there is one."""
        if not self._open:
            return
        block, self._open = self._content[-1], False
        if block["type"] == "tool_use":
            block["input"] = read_arguments(self._arguments)
            self._arguments = ""
        yield self._placed("content_block_stop")

    def _is_open(self, kind: str) -> bool:
        return self._open and self._content[-1]["type"] == kind

    def _placed(self, kind: str, **fields: JsonObject) -> JsonObject:
        return {"type": kind, "index": len(self._content) - 1, **fields}

    def _body(self, usage: Usage) -> JsonObject:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": list(self._content),
            "stop_reason": self._reason,
            "stop_sequence": self._stop_text,
            "stop_details": None,
            "usage": _used(usage),
        }


def _used(usage: Usage) -> JsonObject:
    """Counts in Anthropic's form, where tokens from the cache are no input tokens."""
    counts: JsonObject = {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
    if usage.reasoning is not None:
        counts["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return counts
