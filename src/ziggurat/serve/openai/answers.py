"""Parts of answers that every format of a response shares: usage, prompts, and how text is read."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from ziggurat.data import HuggingFaceTokenizer
from ziggurat.serve.llm.answer_reader import AnswerReader
from ziggurat.serve.llm.offline import Completion
from ziggurat.serve.llm.output_text import TokenEvent, TokenLogprob, describe_prompt
from ziggurat.serve.llm.prompt_logprobs import PromptLogprobs
from ziggurat.serve.llm.reasoning_parsers import ReasoningStream
from ziggurat.serve.llm.sampling import SamplingParams
from ziggurat.serve.llm.tool_parsers import ToolCallParser
from ziggurat.serve.llm.tools import ToolUse

Body = dict[str, Any]


@dataclasses.dataclass
class Usage:
    """Token counts of one request; the prompt counts once, end ids count as generated."""

    prompt_tokens: int
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    """Generated tokens that are reasoning, its tags not counted."""
    cached_tokens: int = 0
    """Tokens of the prompts that came from the prefix cache."""
    reasoning: Callable[[], ReasoningStream] | None = None
    """Makes a reader of a choice's reasoning; ``None``: there is none to count."""
    _readers: dict[int, ReasoningStream] = dataclasses.field(default_factory=dict)

    def add(self, index: int, event: TokenEvent) -> None:
        """Count one token of a choice."""
        self.completion_tokens += 1
        if self.reasoning is None:
            return
        if index not in self._readers:
            self._readers[index] = self.reasoning()
        reader = self._readers[index]
        before = reader.inside
        reader.push(event.text)
        self.reasoning_tokens += before and reader.inside and event.finish_reason != "stop"

    def body(self) -> Body:
        """The counts in OpenAI's form."""
        used = self.prompt_tokens, self.completion_tokens
        counts: Body = {"prompt_tokens": used[0], "completion_tokens": used[1]}
        if self.reasoning is not None:
            details = {"reasoning_tokens": self.reasoning_tokens}
            counts["completion_tokens_details"] = details
        return counts | {"total_tokens": sum(used)}


class AnswerParts(NamedTuple):
    """Parts that an answer to a conversation may have, and how they are read."""

    params: SamplingParams
    tools: ToolUse | None = None
    """Tools whose calls are taken out of the text, if there are any."""
    parser: ToolCallParser | None = None
    """Reads these calls."""
    prompts: "ShownPrompts | None" = None
    """Prompts that are told of; default none."""
    reasoning: Callable[[], ReasoningStream] | None = None
    """Makes a reader of the reasoning; ``None``: it stays in the text."""

    def new_id(self) -> str:
        """A new id of a call."""
        assert self.parser is not None, "no calls are read"
        return self.parser.new_id()

    def reader(self) -> AnswerReader:
        """A new reader, for one choice."""
        calls = None
        if self.tools is not None and self.parser is not None:
            calls = self.parser.reader(self.tools)
        return AnswerReader(calls, None if self.reasoning is None else self.reasoning())


@runtime_checkable
class AnswerFormat(Protocol):
    """Format of a request's response, whole and streamed."""

    named_events: ClassVar[bool]
    """Whether a stream's events are named by their ``type``, rather than ended by ``[DONE]``."""

    def whole(self, completions: Sequence[Completion], usage: Usage) -> Body:
        """Body of an answer that is not streamed."""
        ...

    def opening(self, choices: int) -> Iterator[Body]:
        """First bodies of a stream."""
        ...

    def chunks(self, index: int, event: TokenEvent) -> Iterator[Body]:
        """Bodies for one token of a choice."""
        ...

    def closing(self, usage: Usage, shown: bool) -> Iterator[Body]:
        """Last bodies of a stream; ``shown`` says that the request asked for the usage."""
        ...

    def failed(self, error: Exception) -> Iterator[Body]:
        """Last bodies of a stream that an error ends; none: the error is told as OpenAI does."""
        ...


@dataclasses.dataclass(frozen=True)
class ShownPrompts:
    """Prompts whose tokens or log-probabilities an answer shows."""

    tokenizer: HuggingFaceTokenizer
    ids: Sequence[Sequence[int]]
    """Tokens of each."""
    n: int = 1
    """Choices of each."""
    top: int | None = None
    """Likely tokens in field ``prompt_logprobs``; ``None``: there is no such field."""
    show_ids: bool = False
    """Whether token ids are shown, those of the prompt and of each choice."""

    def of(self, index: int) -> Sequence[int]:
        """Tokens of the prompt of a choice."""
        return self.ids[index // self.n]

    def generated(self, ids: Sequence[int]) -> Body:
        """Field ``token_ids`` of a choice, if it was asked for."""
        return {"token_ids": list(ids)} if self.show_ids else {}

    def fields(self, index: int, found: PromptLogprobs | None) -> Body:
        """Fields on the prompt of a choice that were asked for."""
        shown = {"prompt_token_ids": list(self.of(index))} if self.show_ids else {}
        return self.field(index, found) | shown

    def described(self, index: int, found: PromptLogprobs, top: int) -> list[TokenLogprob]:
        """Entries of a choice's prompt but its first token, with ``top`` likely ones each."""
        few = found.cut(len(found.chosen), top)
        return describe_prompt(self.tokenizer, self.of(index)[1:], few)

    def field(self, index: int, found: PromptLogprobs | None) -> Body:
        """Field ``prompt_logprobs``, in vLLM's form, if it was asked for."""
        if self.top is None or found is None:
            return {}
        entries: list[Body | None] = [None]
        described = self.described(index, found, self.top)
        for entry, rank in zip(described, found.ranks.tolist()):
            ranked = [(entry, rank), *((one, n) for n, one in enumerate(entry.top, 1))]
            entries.append({str(one.token): _ranked(one, n) for one, n in ranked})
        return {"prompt_logprobs": entries}


def _ranked(entry: TokenLogprob, rank: int) -> Body:
    return {"logprob": entry.logprob, "rank": rank, "decoded_token": entry.text}
