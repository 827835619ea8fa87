"""The messages of a conversation as OpenAI writes them, made ready for chat templates."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from ziggurat.serve.errors import RequestError


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

    # An answer that OpenAI's client dumps whole has these; there is nothing in them.
    annotations: list[None] | None = None
    audio: None = None
    function_call: None = None

    def for_template(self, place: str) -> dict[str, Any]:
        """The message as chat templates know it: text content, arguments as objects.

        ``developer`` is OpenAI's newer name of ``system``; templates know the latter.

        Raises:
            RequestError: the fields do not fit the role.
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


def conversation(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages for a chat template.

    Raises:
        RequestError: there are none, or one is of no use.
    """
    if not messages:
        raise RequestError("messages", found="none", expected="at least one", param="messages")
    return [message.for_template(f"messages[{i}]") for i, message in enumerate(messages)]


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
