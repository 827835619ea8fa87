"""OpenAI's request bodies: every field is applied, known to change nothing, or refused by name.

>>> decode(CompletionRequest, b'{"model": "m", "prompt": "Hi", "colour": 1}')
Traceback (most recent call last):
ziggurat.serve.errors.RequestError: colour: found an unknown field; expected a field of this request
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec

from ziggurat.core.errors import did_you_mean
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.sampling import MAX_LOGPROBS, SamplingParams

R = TypeVar("R", bound="GenerationRequest")

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": (),
    "functions": (),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (),
    "prediction": (),
    "presence_penalty": (0,),
    "prompt_cache_options": (),
    "reasoning_effort": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields of OpenAI and vLLM that are not applied, each with the values that ask for nothing."""


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """``stream_options``."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class GenerationRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What both kinds of request share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    n: int | None = None

    # Labels for the service's operator; they change no answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    store: bool | None = None
    service_tier: str | None = None
    response_format: dict[str, Any] | None = None

    def check(self) -> None:
        """Refuse what is not applied.

        Raises:
            RequestError: ``param`` names the field.
        """
        for name, neutral in NEUTRAL.items():
            value = getattr(self, name, None)
            if value is not None and value not in neutral:
                expected = "no such field"
                if neutral:
                    shown = " or ".join(msgspec.json.encode(entry).decode() for entry in neutral)
                    expected += f", or {shown}"
                raise RequestError(
                    name,
                    found=_short(value),
                    expected=expected,
                    fix="this server does not apply it",
                    param=name,
                )
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "stream_options", found="no stream", expected="stream: true", param="stream_options"
            )

    def _sampling(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "ignore_eos": self.ignore_eos,
            "n": self.n,
        }
        return SamplingParams(
            max_tokens=max_tokens,
            logprobs=logprobs,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            **{name: value for name, value in given.items() if value is not None},
        )


class CompletionRequest(GenerationRequest, kw_only=True):
    """The body of ``POST /v1/completions``."""

    prompt: str | list[Any]
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None
    best_of: int | None = None

    def check(self) -> None:
        super().check()
        if self.echo and self.logprobs is not None:
            raise RequestError(
                "echo",
                found="echo with logprobs",
                expected="one of them",
                fix="log-probabilities of the prompt are not computed",
                param="echo",
            )

    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, one or several."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if _all(prompt, int):
            return [prompt]
        several = prompt and (_all(prompt, str) or all(_all(entry, int) for entry in prompt))
        if not several:
            raise RequestError(
                "prompt",
                found=_short(prompt),
                expected="a text, a list of texts, token ids or a list of token ids",
                param="prompt",
            )
        return prompt

    def sampling(self) -> SamplingParams:
        """What the engine needs; as with OpenAI, 16 tokens unless more are asked for."""
        return self._sampling(16 if self.max_tokens is None else self.max_tokens, self.logprobs)


class TextPart(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class FunctionCall(msgspec.Struct, forbid_unknown_fields=True):
    """The function that the assistant called, its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, forbid_unknown_fields=True):
    """One call in an assistant's message."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: Literal["developer", "system", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None

    def for_template(self, place: str) -> dict[str, Any]:
        """The message as chat templates know it: text content, arguments as objects.

        ``developer`` is OpenAI's newer name of ``system``; templates know the latter.
        """
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        if content is None and self.refusal is not None and self.role == "assistant":
            content = self.refusal
        if content is None and not (self.role == "assistant" and self.tool_calls):
            raise RequestError(f"{place}.content", found="null", expected="text", param="messages")
        for field, owner in (("tool_calls", "assistant"), ("tool_call_id", "tool")):
            if getattr(self, field) is not None and self.role != owner:
                where = f"{place}.{field}"
                expected = f"only in a message of role {owner}"
                raise RequestError(where, found=self.role, expected=expected, param="messages")
        message: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": content or "",
        }
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": _arguments(call, place)},
                }
                for call in self.tool_calls
            ]
        optional = {"name": self.name, "tool_call_id": self.tool_call_id}
        return message | {name: value for name, value in optional.items() if value is not None}


class ChatRequest(GenerationRequest, kw_only=True):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    audio: dict[str, Any] | None = None
    function_call: Any = None
    functions: list[Any] | None = None
    modalities: list[str] | None = None
    moderation: Any = None
    parallel_tool_calls: bool | None = None
    prediction: dict[str, Any] | None = None
    prompt_cache_options: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    tool_choice: Any = None
    tools: list[Any] | None = None
    verbosity: str | None = None
    web_search_options: dict[str, Any] | None = None

    def conversation(self) -> list[dict[str, Any]]:
        """The messages for the chat template."""
        if not self.messages:
            raise RequestError("messages", found="none", expected="at least one", param="messages")
        return [m.for_template(f"messages[{i}]") for i, m in enumerate(self.messages)]

    def sampling(self) -> SamplingParams:
        """What the engine needs; without a limit the answer may fill the context."""
        limits = {x for x in (self.max_tokens, self.max_completion_tokens) if x is not None}
        if len(limits) > 1:
            raise RequestError(
                "max_tokens",
                found=f"{self.max_tokens}, and max_completion_tokens {self.max_completion_tokens}",
                expected="one of them",
                param="max_tokens",
            )
        top = self.top_logprobs
        if top is not None and not self.logprobs:
            raise RequestError(
                "top_logprobs", found="no logprobs", expected="logprobs: true", param="top_logprobs"
            )
        if top is not None and not 0 <= top <= MAX_LOGPROBS:
            expected = f"a number from 0 to {MAX_LOGPROBS}"
            raise RequestError("top_logprobs", found=top, expected=expected, param="top_logprobs")
        return self._sampling(next(iter(limits), None), (top or 0) if self.logprobs else None)


def decode(kind: type[R], body: bytes) -> R:
    """Read and check a request body.

    Raises:
        RequestError: no JSON, or a field is unknown, missing, of a wrong type or not applied.
    """
    try:
        request = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _explain(kind, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError("request body", found=error, expected="valid JSON") from None
    request.check()
    return request


def _explain(kind: type, text: str) -> RequestError:
    reason, _, path = text.partition(" - at `$")
    where = path.rstrip("`").removeprefix(".")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", reason, re.DOTALL)
    if unknown:
        name = unknown[1]
        dotted = f"{where}.{name}" if where else name
        return RequestError(
            _short(dotted),
            found="an unknown field",
            expected="a field of this request",
            fix="" if where else did_you_mean(name, kind.__struct_fields__),  # type: ignore[attr-defined]
            param=dotted,
        )
    missing = re.fullmatch(r"Object missing required field `(.*)`", reason)
    if missing:
        dotted = f"{where}.{missing[1]}" if where else missing[1]
        return RequestError(dotted, found="nothing", expected="a value", param=dotted)
    return RequestError(where or "request body", found=reason, param=where or None)


def _arguments(call: ToolCall, place: str) -> Mapping[str, Any]:
    try:
        return msgspec.json.decode(call.function.arguments, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise RequestError(
            f"{place}.tool_calls: arguments of {call.function.name}",
            found=error,
            expected="a JSON object as text",
            param="messages",
        ) from None


def _all(value: Any, kind: type) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and all(type(entry) is kind for entry in value)
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
