"""Chat templates with marks around what the assistant says, for families whose own have none.

A checkpoint's template is recognised by what it does: it renders a few conversations, and a
template of this folder that renders the same texts marks its answers. That holds for any revision
and spelling of a template, and by it the ids that are trained are those of the checkpoint's own
template. Where the two differ on a conversation after all, the marks are not used
(:mod:`ziggurat.data.conversation`).

Qwen 3 is the exception. Its own template leaves the reasoning of all answers but the last out, and
so would show the model answers that it never gives; ours renders every answer as it is generated.

Marks stand where those of TRL's training templates do: a turn's end token is learned, and the line
end behind it where the family's template writes both as one.
"""

import functools
import hashlib
from pathlib import Path

from ziggurat.core.errors import DataError
from ziggurat.core.json_types import JsonObject
from ziggurat.data import chat

FAMILIES = (
    "chatml",
    "smollm2",
    "qwen2",
    "qwen2_5",
    "llama3",
    "llama3_1",
    "llama3_2",
    "mistral",
    "gemma",
    "gemma3",
    "phi3",
    "deepseek_v3",
    "gpt_oss",
    "qwen3",
)
"""Names of the templates. ``gemma`` is Gemma 2's too, ``llama3_2`` that of later Llama 3."""
REWRITING = frozenset({"qwen3"})
"""Templates that render earlier answers otherwise than the template that they replace."""

_SYSTEM = {"role": "system", "content": "Be brief."}
_ASKED = {"role": "user", "content": "Which?"}
_SAID = {"role": "assistant", "content": "This one."}
_SHORT = ([_ASKED, _SAID], [_SYSTEM, _ASKED, _SAID])
_LONG = (*_SHORT, [_ASKED, _SAID, _ASKED, _SAID], [_SYSTEM, _ASKED, _SAID, _ASKED])
_THOUGHT = [_ASKED, _SAID | {"reasoning_content": "Hm."}]


@functools.cache
def source(family: str) -> str:
    """Source text of a family's training template."""
    return (Path(__file__).parent / f"{family}.jinja").read_text(encoding="utf-8")


@functools.cache
def digest() -> str:
    """Digest of all training templates, which is part of a token store's key."""
    whole = "\0".join(map(source, FAMILIES))
    return hashlib.blake2b(whole.encode(), digest_size=8).hexdigest()


@functools.lru_cache(maxsize=64)
def family_of(template: str, special_tokens: tuple[tuple[str, str], ...]) -> str | None:
    """The family whose template renders conversations as this one does; None if none does.

    Args:
        template: jinja source.
        special_tokens: by role, which templates read.

    >>> family_of("{% for m in messages %}<|im_start|>{{ m.role + '\\n' + m.content }}"
    ...     "<|im_end|>\\n{% endfor %}", ())
    'chatml'
    """
    given = dict(special_tokens)
    for family in FAMILIES:
        talks = (*_SHORT, _THOUGHT) if family in REWRITING else _LONG
        texts = [_text(template, talk, given) for talk in talks]
        ours = [_text(source(family), talk, given) for talk in talks]
        if texts == ours and any(text is not None for text in texts):
            return family
    return None


def _text(template: str, messages: list[JsonObject], given: dict[str, str]) -> str | None:
    """The rendered text; None where the template refuses the conversation."""
    try:
        return chat.render(template, messages, None, False, **given)
    except DataError:
        return None
