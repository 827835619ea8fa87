"""How a server reads requests: choices of its operator that hold for every client."""

import dataclasses
from typing import Literal

from ziggurat.core.json_types import JsonMapping
from ziggurat.serve.llm.reasoning_parsers import NONE, REASONING_PARSERS
from ziggurat.serve.llm.render import ContentFormat
from ziggurat.serve.llm.tool_parsers import AUTO, TOOL_CALL_PARSERS

SpecialTokens = Literal["template", "none", "all"]
ExtraFields = Literal["refuse", "ignore"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestPolicy:
    """Settings of reading requests: unknown fields, and special tokens in text."""

    content_format: ContentFormat = "auto"
    """How chat templates get the content of messages, as in vLLM: ``string``, ``openai`` (a list of
    parts), or whichever shows a message."""
    special_tokens: SpecialTokens = "template"
    """Where the text of a special token becomes that token. ``template``: in what a chat template
    adds, and in the prompts of ``/v1/completions``, where the client is the template; ``none``: not
    in prompts either; ``all``: in the texts of messages too, as in vLLM."""
    extra_fields: ExtraFields = "refuse"
    """Treatment of fields that are unknown or not applied: answer 400, or ignore them."""
    tool_call_parser: str = AUTO
    """Form of tool calls, by its name in
    :data:`~ziggurat.serve.llm.tool_parsers.TOOL_CALL_PARSERS`; ``auto``: the one that the chat
    template shows."""
    reasoning_parser: str = AUTO
    """Form of reasoning, by its name in
    :data:`~ziggurat.serve.llm.reasoning_parsers.REASONING_PARSERS`; ``auto``: the one that the chat
    template shows, ``none``: reasoning stays in the text."""
    sampling: JsonMapping = dataclasses.field(default_factory=dict)
    """Sampling parameters where a request gives none, such as those of the model's
    ``generation_config.json``."""

    def __post_init__(self):
        if self.tool_call_parser != AUTO:
            TOOL_CALL_PARSERS[self.tool_call_parser]  # raises a ConfigError for an unknown name
        if self.reasoning_parser not in (AUTO, NONE):
            REASONING_PARSERS[self.reasoning_parser]

    @property
    def control_in_messages(self) -> bool:
        """Whether text in messages can become special tokens."""
        return self.special_tokens == "all"

    @property
    def control_in_prompts(self) -> bool:
        """Whether raw prompts can hold special tokens."""
        return self.special_tokens != "none"


DEFAULT = RequestPolicy()
"""Policy of a server whose operator set none."""
