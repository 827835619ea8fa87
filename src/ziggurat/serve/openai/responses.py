"""OpenAI's response bodies, whole and in chunks."""

import codecs
import dataclasses
import math
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import ClassVar

from ziggurat.serve.llm.answer_reader import AnswerDelta, AnswerReader
from ziggurat.serve.llm.offline import Completion
from ziggurat.serve.llm.output_text import (
    TokenEvent,
    TokenLogprob,
    describe_token,
)
from ziggurat.serve.llm.prompt_logprobs import PromptLogprobs
from ziggurat.serve.llm.reasoning_parsers import ReasoningDelta
from ziggurat.serve.llm.tool_parsers import TextDelta
from ziggurat.serve.openai.answers import AnswerParts, Body, ShownPrompts, Usage


class ChatFormat:
    """Response bodies of ``/v1/chat/completions``.

    Args:
        model: name of the model.
        answer: how each choice is to be read.
    """

    named_events: ClassVar[bool] = False

    def __init__(self, model: str, answer: AnswerParts):
        self._answer, self._prompts = answer, answer.prompts
        self._logprobs = answer.params.logprobs is not None
        self._plain = answer.tools is None and answer.reasoning is None
        self._readers: dict[int, AnswerReader] = {}
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, completions: Sequence[Completion], usage: Usage) -> Body:
        """Body of an answer that is not streamed."""
        choices = []
        for index, completion in enumerate(completions):
            message: Body = {"role": "assistant", "content": completion.text, "refusal": None}
            if not self._plain:
                deltas = self._deltas(index, completion.text, completion.finish_reason)
                message |= _joined(deltas)
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": self._entries(completion.logprobs),
                    "finish_reason": self._reason(index, completion.finish_reason),
                }
            )
            if self._prompts is not None:
                choices[-1] |= self._prompts.generated(completion.token_ids)
        body = self._body("chat.completion", choices) | {"usage": usage.body()}
        if self._prompts is not None:
            body |= self._prompts.fields(0, completions[0].prompt_logprobs)
        return body

    def opening(self, choices: int) -> Iterator[Body]:
        """First chunks of a stream, which name the role."""
        for index in range(choices):
            body = self._chunk(index, {"role": "assistant", "content": ""}, None)
            told = {} if index or self._prompts is None else self._prompts.fields(0, None)
            yield body | told

    def chunks(self, index: int, event: TokenEvent) -> Iterator[Body]:
        """Chunks for one event: its text or calls, then the finish reason, if it ends."""
        logprobs = event.logprobs
        told = {} if self._prompts is None else self._prompts.generated([event.token])
        for delta in self._deltas(index, event.text, event.finish_reason):
            yield self._chunk(index, delta, None, logprobs, told)
            logprobs, told = (), {}
        if logprobs or told:
            yield self._chunk(index, {"content": ""}, None, logprobs, told)
        if event.finish_reason is not None:
            yield self._chunk(index, {}, self._reason(index, event.finish_reason))

    def _deltas(self, index: int, text: str, finish_reason: str | None) -> list[Body]:
        if index not in self._readers:
            self._readers[index] = self._answer.reader()
        deltas = self._readers[index].read(text, ended=finish_reason is not None)
        return [_delta_body(delta, self._answer) for delta in deltas]

    def _reason(self, index: int, reason: str) -> str:
        """As OpenAI: calls end with ``tool_calls``, except one that the request named itself."""
        called = index in self._readers and self._readers[index].called
        named = self._answer.tools is not None and self._answer.tools.named
        return "tool_calls" if reason == "stop" and called and not named else reason

    def closing(self, usage: Usage, shown: bool) -> Iterator[Body]:
        """Last chunk of a stream whose request asked for usage."""
        if shown:
            yield self._body("chat.completion.chunk", []) | {"usage": usage.body()}

    def failed(self, error: Exception) -> Iterator[Body]:
        """No chunks: the error is told by itself."""
        return iter(())

    def _chunk(
        self,
        index: int,
        delta: Body,
        finish_reason: str | None,
        logprobs: Sequence[TokenLogprob] = (),
        more: Body | None = None,
    ) -> Body:
        shown = self._entries(logprobs) if logprobs else None
        choice = {"index": index, "delta": delta, "logprobs": shown, "finish_reason": finish_reason}
        return self._body("chat.completion.chunk", [choice | (more or {})])

    def _entries(self, logprobs: Sequence[TokenLogprob]) -> Body | None:
        if not self._logprobs:
            return None
        return {
            "content": [logprob_entry(x, [*map(logprob_entry, x.top)]) for x in logprobs],
            "refusal": None,
        }

    def _body(self, kind: str, choices: list[Body]) -> Body:
        return {**self._head, "object": kind, "choices": choices}


def _delta_body(delta: AnswerDelta, answer: AnswerParts) -> Body:
    """A delta of a chat chunk; reasoning under vLLM's name, and under that of DeepSeek's API."""
    if isinstance(delta, ReasoningDelta):
        return {"reasoning": delta.text, "reasoning_content": delta.text}
    if isinstance(delta, TextDelta):
        return {"content": delta.text}
    call: Body = {"index": delta.index}
    if delta.name is not None:
        call |= {"id": answer.new_id(), "type": "function"}
    named = {} if delta.name is None else {"name": delta.name}
    return {"tool_calls": [call | {"function": {**named, "arguments": delta.arguments}}]}


def _joined(deltas: Sequence[Body]) -> Body:
    """The message that deltas make together."""
    text, reasoning, calls = "", "", []
    for delta in deltas:
        text += delta.get("content", "")
        reasoning += delta.get("reasoning", "")
        for piece in delta.get("tool_calls", ()):
            if "id" in piece:
                calls.append({**piece, "function": dict(piece["function"])})
                del calls[-1]["index"]
            else:
                calls[-1]["function"]["arguments"] += piece["function"]["arguments"]
    thought = {"reasoning": reasoning, "reasoning_content": reasoning} if reasoning else {}
    content = text if text or not (calls or thought) else None
    return {"content": content, **thought, **({"tool_calls": calls} if calls else {})}


class TextFormat:
    """Response bodies of ``/v1/completions``.

    Args:
        model: name of the model.
        logprobs: whether log-probabilities are shown.
        echo: text to begin each choice with, by number of the choice.
        top: likely tokens beside each of an echoed prompt's; ``None``: without log-probabilities.
        prompts: what is told of the prompts; default nothing.
        prompt_alone: whether what is generated is not shown.
    """

    named_events: ClassVar[bool] = False

    def __init__(
        self,
        model: str,
        *,
        logprobs: bool,
        echo: Sequence[str] = (),
        top: int | None = None,
        prompts: ShownPrompts | None = None,
        prompt_alone: bool = False,
    ):
        self._logprobs, self._echo = logprobs, list(echo)
        self._top, self._prompts, self._alone = top if echo else None, prompts, prompt_alone
        self._begun: set[int] = set()
        self._places: dict[int, _Place] = {}
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, completions: Sequence[Completion], usage: Usage) -> Body:
        """Body of an answer that is not streamed."""
        choices = []
        for index, completion in enumerate(completions):
            text = (self._echo[index] if self._echo else "") + completion.text
            entries = [*self._echoed(index, completion.prompt_logprobs), *completion.logprobs]
            reason: str = completion.finish_reason
            if self._alone:
                text, reason = self._echo[index], "length"
                entries = self._echoed(index, completion.prompt_logprobs)
            choice = self._choice(index, text, reason, self._entries(index, entries))
            if self._prompts is not None:
                choice |= self._prompts.fields(index, completion.prompt_logprobs)
                choice |= self._prompts.generated([] if self._alone else completion.token_ids)
            choices.append(choice)
        return {**self._head, "choices": choices, "usage": self._used(usage).body()}

    def opening(self, choices: int) -> Iterator[Body]:
        """First chunks of a stream: the prompts, if ``echo`` asks for them without
        log-probabilities, which are known later."""
        if self._top is None:
            for index, text in enumerate(self._echo[:choices]):
                yield self._chunk(index, text, None)

    def chunks(self, index: int, event: TokenEvent) -> Iterator[Body]:
        """Chunks for one event."""
        if self._top is not None and event.prompt_logprobs is not None:
            entries = self._echoed(index, event.prompt_logprobs)
            yield self._chunk(index, self._echo[index], None, entries)
        told: Body = {}
        if self._prompts is not None and not self._alone:
            told = self._prompts.generated([event.token])
            if told and index not in self._begun:
                self._begun.add(index)
                told |= self._prompts.fields(index, None)
        if self._alone:
            yield self._chunk(index, "", "length")
        elif event.text or event.finish_reason or event.logprobs or told:
            yield self._chunk(index, event.text, event.finish_reason, event.logprobs, told)

    def closing(self, usage: Usage, shown: bool) -> Iterator[Body]:
        """Last chunk of a stream whose request asked for usage."""
        if shown:
            yield {**self._head, "choices": [], "usage": self._used(usage).body()}

    def failed(self, error: Exception) -> Iterator[Body]:
        """No chunks: the error is told by itself."""
        return iter(())

    def _used(self, usage: Usage) -> Usage:
        return dataclasses.replace(usage, completion_tokens=0) if self._alone else usage

    def _echoed(self, index: int, found: PromptLogprobs | None) -> list[TokenLogprob]:
        """Entries of an echoed prompt; that of its first token has no log-probability."""
        if self._top is None or self._prompts is None or found is None:
            return []
        first = describe_token(self._prompts.tokenizer, self._prompts.of(index)[0], math.nan)
        if not self._echo[index].startswith(first.text):  # a token that the tokenizer put before
            first = dataclasses.replace(first, raw=b"")
        return [first, *self._prompts.described(index, found, self._top)]

    def _chunk(
        self,
        index: int,
        text: str,
        finish_reason: str | None,
        logprobs: Sequence[TokenLogprob] = (),
        more: Body | None = None,
    ) -> Body:
        shown = self._entries(index, logprobs) if logprobs else None
        choice = self._choice(index, text, finish_reason, shown) | (more or {})
        return {**self._head, "choices": [choice]}

    def _choice(
        self, index: int, text: str, finish_reason: str | None, logprobs: Body | None
    ) -> Body:
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }

    def _entries(self, index: int, logprobs: Sequence[TokenLogprob]) -> Body | None:
        if not self._logprobs:
            return None
        place = self._places.setdefault(index, _Place())

        def unknown(entry: TokenLogprob) -> bool:
            return math.isnan(entry.logprob)

        return {
            "tokens": [_name(entry) for entry in logprobs],
            "token_logprobs": [None if unknown(x) else x.logprob for x in logprobs],
            "top_logprobs": [None if unknown(x) else _likely(x) for x in logprobs],
            "text_offset": [place.before(entry.raw) for entry in logprobs],
        }


def _likely(entry: TokenLogprob) -> Body:
    return {_name(top): top.logprob for top in entry.top}


class _Place:
    """Characters so far in a text that comes as pieces of bytes."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0

    def before(self, raw: bytes) -> int:
        """Add bytes; returns the characters before them."""
        start = self._characters
        self._characters += len(self._decoder.decode(raw))
        return start


def _name(entry: TokenLogprob) -> str:
    """A token as text; as OpenAI does, ``bytes:\\xe2`` where it is only part of a character."""
    try:
        return entry.raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in entry.raw)


def logprob_entry(entry: TokenLogprob, top: list[Body] | None = None) -> Body:
    """A token's log-probability in the form of OpenAI's chats and responses."""
    body: Body = {"token": entry.text, "logprob": entry.logprob, "bytes": list(entry.raw)}
    return body if top is None else body | {"top_logprobs": top}
