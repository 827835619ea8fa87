"""Bodies of ``POST /v1/responses``: every field is applied, known to change nothing, or refused."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import msgspec

from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.serve.errors import refused, short
from ziggurat.serve.llm.sampling import BUILT_IN, registered_parameters
from ziggurat.serve.llm.structured import JsonSchema, ResponseFormat, StructuredOutputs
from ziggurat.serve.llm.tools import Function, Tool
from ziggurat.serve.openai.requests import SamplingFields

LOGPROBS = "message.output_text.logprobs"
"""Entry of ``include`` that asks for log-probabilities."""
NOTHING: dict[str, tuple[Json, ...]] = {
    "background": (False,),
    "context_management": ([],),
    "conversation": (),
    "max_tool_calls": (),
    "moderation": (),
    "prompt": (),
    "prompt_cache_options": ({}, {"mode": "implicit"}),
    "service_tier": ("auto", "default"),
}
"""Fields of OpenAI that are not applied, each with the values that ask for nothing."""
_SAME = (
    "model", "temperature", "top_p", "stream", "seed", "stop", "stop_token_ids", "logit_bias",
    "allowed_token_ids", "bad_words", "structured_outputs", "cache_salt", "chat_template_kwargs",
    "top_logprobs", "parallel_tool_calls", "user", "metadata", "safety_identifier",
    "prompt_cache_key", "prompt_cache_retention",
)  # fmt: skip
"""Fields that a request to ``/v1/chat/completions`` has under the same name."""


class TextFormatField(msgspec.Struct, forbid_unknown_fields=True):
    """Field ``text.format``."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: JsonObject | None = None
    description: str | None = None
    strict: bool | None = None


class TextField(msgspec.Struct, forbid_unknown_fields=True):
    """Field ``text``."""

    format: TextFormatField | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningField(msgspec.Struct, forbid_unknown_fields=True):
    """Field ``reasoning``; reasoning is shown as it is, so there are no other summaries."""

    effort: str | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None


class FunctionTool(msgspec.Struct, forbid_unknown_fields=True):
    """An entry of ``tools``."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None
    """As in chats: generate only arguments that fit the schema; default no."""


class ResponseStreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Field ``stream_options``."""

    include_obfuscation: Literal[False] | None = None


class ResponseRequest(SamplingFields, kw_only=True):
    """Body of ``POST /v1/responses``, with the sampling parameters of chats beside OpenAI's
    fields."""

    not_applied: ClassVar[Mapping[str, tuple[Json, ...]]] = NOTHING

    model: str
    input: str | list[Json] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = None
    truncation: Literal["auto", "disabled"] | None = None
    text: TextField | None = None
    reasoning: ReasoningField | None = None
    tools: list[Json] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    store: bool | None = None
    """Keep the answer for later requests; default yes, as with OpenAI."""
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None

    # Of chats, and of vLLM.
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    structured_outputs: StructuredOutputs | None = None
    cache_salt: str | None = None
    chat_template_kwargs: JsonObject | None = None

    # Labels for the service's operator; they change no answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    # Not applied: see NOTHING.
    background: bool | None = None
    context_management: list[Json] | None = None
    conversation: Json = None
    max_tool_calls: int | None = None
    moderation: Json = None
    prompt: Json = None
    prompt_cache_options: JsonObject | None = None
    service_tier: str | None = None

    def check(self) -> None:
        """Refuse fields that are not applied or contradict each other.

        Raises:
            RequestError: ``param`` names the field.
        """
        super().check()
        if self.n not in (None, 1):
            raise refused("n", self.n, "1: a response has one answer")
        for entry in self.include or ():
            if entry != LOGPROBS:
                raise refused("include", short(repr(entry)), LOGPROBS)
        if self.top_logprobs and not self.logprobs:
            raise refused("top_logprobs", "no logprobs", f'include: ["{LOGPROBS}"]')
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options", "no stream", "stream: true")
        if self.input is None and self.previous_response_id is None:
            raise refused("input", "nothing", "a text, or a list of items")

    @property
    def logprobs(self) -> bool:
        """Whether log-probabilities are asked for."""
        return LOGPROBS in (self.include or ())

    def chat_fields(self) -> JsonObject:
        """Fields of the same request to ``/v1/chat/completions``, but for the messages.

        Raises:
            RequestError: a tool is none that this server knows, or a field is not well told.
        """
        sampling = (*BUILT_IN, *registered_parameters())
        given = {name: getattr(self, name, None) for name in dict.fromkeys((*_SAME, *sampling))}
        return given | {
            "max_completion_tokens": self.max_output_tokens,
            "logprobs": self.logprobs or None,
            "reasoning_effort": None if self.reasoning is None else self.reasoning.effort,
            "response_format": self._format(),
            "tools": self._tools(),
            "tool_choice": _choice(self.tool_choice),
        }

    def _format(self) -> ResponseFormat | None:
        given = None if self.text is None else self.text.format
        if given is None:
            return None
        if given.type != "json_schema":
            return ResponseFormat(given.type)
        if given.name is None or given.schema is None:
            found = "no name" if given.name is None else "no schema"
            raise refused("text.format", found, "name and schema with type json_schema")
        schema = JsonSchema(given.name, given.schema, given.description, given.strict)
        return ResponseFormat("json_schema", schema)

    def _tools(self) -> list[Tool] | None:
        return None if self.tools is None else [_tool(t, i) for i, t in enumerate(self.tools)]


def _tool(given: Json, number: int) -> Tool:
    place = f"tools[{number}]"
    kind = given.get("type") if isinstance(given, dict) else given
    if kind != "function":
        fix = "this server runs no built-in tools"
        raise refused(f"{place}.type", short(repr(kind)), "function", fix)
    try:
        tool = msgspec.convert(given, FunctionTool)
    except msgspec.ValidationError as error:
        raise refused(place, error, "a function as OpenAI writes it") from None
    function = Function(
        tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
    )
    return Tool("function", function)


def _choice(given: str | JsonMapping | None) -> str | JsonObject | None:
    """A ``tool_choice`` as chats have it."""
    if given is None or isinstance(given, str):
        return given
    kind = given.get("type")
    if kind == "function":
        return {"type": "function", "function": {"name": given.get("name")}}
    if kind == "allowed_tools":
        tools = given.get("tools")
        named = [_choice(each) for each in tools] if isinstance(tools, list) else tools
        return {"type": kind, "allowed_tools": {"mode": given.get("mode"), "tools": named}}
    expected = "none, auto, required, or an object of type function or allowed_tools"
    raise refused("tool_choice", short(repr(kind)), expected, "there are no built-in tools")
