"""Bodies of ``POST /v1/messages``: every field is applied, known to change nothing, or refused."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import msgspec

from ziggurat.core.json_types import Json, JsonObject
from ziggurat.serve.bodies import refuse_unless
from ziggurat.serve.errors import refused, short
from ziggurat.serve.llm.sampling import BUILT_IN, registered_parameters
from ziggurat.serve.llm.structured import JsonSchema, ResponseFormat
from ziggurat.serve.llm.tools import Function, Tool
from ziggurat.serve.openai.requests import SamplingFields

NOTHING: dict[str, tuple[Json, ...]] = {
    "container": (),
    "context_management": ({}, {"edits": []}),
    "diagnostics": (),
    "inference_geo": (),
    "mcp_servers": ([],),
    "service_tier": ("auto", "standard_only"),
    "speed": ("standard",),
}
"""Fields of Anthropic that are not applied, each with the values that ask for nothing."""
NOTHING_OF_TOOLS: dict[str, tuple[Json, ...]] = {
    "allowed_callers": (["direct"],),
    "defer_loading": (False,),
    "input_examples": ([],),
}
"""Fields of a tool that are not applied, in the same way."""
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
"""Types of ``tool_choice``, and what chats call them."""


class SchemaFormat(msgspec.Struct, forbid_unknown_fields=True):
    """Field ``output_config.format``."""

    type: Literal["json_schema"]
    schema: JsonObject


class OutputConfig(msgspec.Struct, forbid_unknown_fields=True):
    """Field ``output_config``."""

    format: SchemaFormat | None = None
    effort: str | None = None


class Thinking(msgspec.Struct, forbid_unknown_fields=True):
    """Field ``thinking``; reasoning is shown as it is."""

    type: Literal["adaptive", "enabled", "disabled"]
    budget_tokens: int | None = None
    display: Literal["summarized"] | None = None


class CustomTool(msgspec.Struct, forbid_unknown_fields=True):
    """An entry of ``tools``."""

    name: str
    input_schema: JsonObject
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    """Generate only an input that fits the schema; default no."""

    # Of other servers' caches and streams: nothing here depends on them.
    cache_control: Json = None
    eager_input_streaming: bool | None = None

    # Not applied: see NOTHING_OF_TOOLS.
    allowed_callers: list[str] | None = None
    defer_loading: bool | None = None
    input_examples: list[Json] | None = None


class ToolChoice(msgspec.Struct, forbid_unknown_fields=True):
    """Field ``tool_choice``."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class MessageRequest(SamplingFields, kw_only=True):
    """Body of ``POST /v1/messages`` and of ``/v1/messages/count_tokens``, with the sampling
    parameters of chats beside Anthropic's fields."""

    not_applied: ClassVar[Mapping[str, tuple[Json, ...]]] = NOTHING

    model: str
    messages: list[Json]
    max_tokens: int | None = None
    system: str | list[Json] | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    tools: list[Json] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    # Of chats, and of vLLM.
    seed: int | None = None
    cache_salt: str | None = None
    chat_template_kwargs: JsonObject | None = None

    # Labels for the service's operator, and marks for other servers' caches.
    metadata: JsonObject | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None
    cache_control: Json = None

    # Not applied: see NOTHING.
    container: Json = None
    context_management: JsonObject | None = None
    diagnostics: Json = None
    inference_geo: str | None = None
    mcp_servers: list[Json] | None = None
    service_tier: str | None = None
    speed: str | None = None

    def check(self) -> None:
        """Refuse fields that are not applied or contradict each other.

        Raises:
            RequestError: ``param`` names the field.
        """
        super().check()
        if self.n not in (None, 1):
            raise refused("n", self.n, "1: a message is one answer")
        thinking = self.thinking
        if thinking is not None and thinking.budget_tokens is not None:
            expected = "no such field: this server cannot bound the reasoning alone"
            fix = 'send {"type": "adaptive"}, and bound all of the answer by max_tokens'
            raise refused("thinking.budget_tokens", thinking.budget_tokens, expected, fix)
        choice = self.tool_choice
        if choice is not None and (choice.type == "tool") != (choice.name is not None):
            found = "no name" if choice.name is None else f"a name with type {choice.type}"
            raise refused("tool_choice", found, "a name with type tool, and with no other")

    @classmethod
    def applied(cls, given: JsonObject) -> JsonObject:
        """Fields that are applied."""
        kept = super().applied(given)
        thinking = kept.get("thinking")
        if isinstance(thinking, Mapping):
            kept["thinking"] = {k: v for k, v in thinking.items() if k != "budget_tokens"}
        return kept

    def chat_fields(self) -> JsonObject:
        """Fields of the same request to ``/v1/chat/completions``, but for the messages and what
        reasoning does with its template.

        Raises:
            RequestError: a tool is none that this server knows, or a field is not well told.
        """
        sampling = (*BUILT_IN, *registered_parameters())
        same = ("model", "stream", "max_tokens", "seed", "cache_salt", "chat_template_kwargs")
        config, choice = self.output_config or OutputConfig(), self.tool_choice
        alone = choice is not None and choice.disable_parallel_tool_use
        return {name: getattr(self, name, None) for name in dict.fromkeys((*same, *sampling))} | {
            "stop": self.stop_sequences,
            "reasoning_effort": config.effort,
            "response_format": _format(config.format),
            "tools": None if not self.tools else [_tool(t, i) for i, t in enumerate(self.tools)],
            "tool_choice": _choice(choice),
            "parallel_tool_calls": False if alone and self.tools else None,
        }


def _format(given: SchemaFormat | None) -> ResponseFormat | None:
    if given is None:
        return None
    return ResponseFormat("json_schema", JsonSchema("output", given.schema))


def _tool(given: Json, number: int) -> Tool:
    place = f"tools[{number}]"
    kind = given.get("type") if isinstance(given, dict) else given
    if kind not in (None, "custom"):
        fix = "this server runs no tools of its own"
        raise refused(f"{place}.type", short(repr(kind)), "custom", fix)
    try:
        tool = msgspec.convert(given, CustomTool)
    except msgspec.ValidationError as error:
        raise refused(place, error, "a tool as Anthropic writes it") from None
    for name, neutral in NOTHING_OF_TOOLS.items():
        refuse_unless(f"{place}.{name}", getattr(tool, name), neutral)
    function = Function(
        tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
    )
    return Tool("function", function)


def _choice(given: ToolChoice | None) -> str | JsonObject | None:
    """A ``tool_choice`` as chats have it."""
    if given is None:
        return None
    if given.type == "tool":
        return {"type": "function", "function": {"name": given.name}}
    return _CHOICES[given.type]
