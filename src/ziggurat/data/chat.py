"""Chat templates: messages to the text a model was trained on, as transformers renders them.

A template is a program from an untrusted checkpoint, so it runs in jinja2's immutable sandbox and
sees plain JSON values only. The extensions are those of transformers 5: loop controls, a
``{% generation %}`` block, ``raise_exception``, ``strftime_now`` and a ``tojson`` that escapes no
HTML.

>>> template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
>>> render(template, [{"role": "user", "content": "Hi"}], eos_token="</s>")
'<user>Hi</s>'
"""

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import numpy as np

from ziggurat.core.errors import DataError
from ziggurat.core.json_types import Json, JsonMapping, JsonObject

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's reasoning; the first is the standard, and templates get it filled."""


def render(
    template: str,
    messages: Sequence[Json],
    tools: Sequence[JsonMapping] | None = None,
    add_generation_prompt: bool = True,
    **kwargs: Any,
) -> str:
    """Render a conversation.

    Args:
        template: jinja source, as in ``chat_template.jinja``.
        messages: mappings, dataclasses or pydantic models, each with ``role`` and ``content`` and
            what else the template reads.
        tools: JSON schemas of the functions the model may call.
        add_generation_prompt: end with the opening of the assistant's turn.
        kwargs: further variables, such as ``bos_token`` or ``enable_thinking``.

    Raises:
        DataError: the template does not parse, fails, or rejects the conversation.
    """
    return render_with_spans(template, messages, tools, add_generation_prompt, **kwargs)[0]


def render_with_spans(
    template: str,
    messages: Sequence[Json],
    tools: Sequence[JsonMapping] | None = None,
    add_generation_prompt: bool = True,
    **kwargs: Any,
) -> tuple[str, list[tuple[int, int]]]:
    """The text of :func:`render` and the character ranges inside ``{% generation %}`` blocks.

    The ranges are what the assistant said, hence what a fine-tune learns; a template without such
    blocks has none.

    >>> said = "[{% generation %}{{ m.content }}{% endgeneration %}]"
    >>> template = "{% for m in messages %}" + said + "{% endfor %}"
    >>> render_with_spans(template, [{"content": "ab"}, {"content": "c"}])
    ('[ab][c]', [(1, 3), (5, 6)])
    """
    plain = _plain(list(messages))
    for number, message in enumerate(plain):
        if not isinstance(message, dict):
            raise DataError(f"message {number}", found=type(messages[number]), expected="a mapping")
    variables = {
        "documents": None,
        **_plain(kwargs),
        "messages": [_with_reasoning(message) for message in plain],
        "tools": None if tools is None else _plain(list(tools)),
        "add_generation_prompt": add_generation_prompt,
    }
    spans = _Spans()
    try:
        program = _compile(template)
        text = ""
        for block in program.generate(variables | {_SPANS: spans}):
            spans.blocks.append(block)
        text = "".join(spans.blocks)
    except Exception as error:
        line = getattr(error, "lineno", None)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            "chat template" + (f" line {line}" if line else ""),
            found=reason,
            expected="a template that takes these messages",
        ) from None
    return text, spans.found


_SPANS = "_ziggurat_spans"


@dataclasses.dataclass
class _Spans:
    """Blocks rendered so far, and the ranges of generation blocks among them."""

    blocks: list[str] = dataclasses.field(default_factory=list)
    found: list[tuple[int, int]] = dataclasses.field(default_factory=list)


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %} ... {% endgeneration %}``: renders its body and notes where it stood."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_note", [jinja2.nodes.ContextReference()])
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _note(self, context: Any, caller: Any) -> str:
        text = caller()
        spans = context.get(_SPANS)
        start = sum(map(len, spans.blocks))
        spans.found.append((start, start + len(text)))
        return text


class _Namespace(jinja2.utils.Namespace):
    """A namespace that refuses private names, by which a template could reach the interpreter.

    ``self`` is taken from ``args`` so that ``namespace(self=...)`` works.
    """

    def __init__(*args: Any, **kwargs: Any):
        self, args = args[0], args[1:]
        entries = dict(*args, **kwargs)
        for name in entries:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, entries)

    def __setitem__(self, name: Any, value: object) -> None:
        _refuse_private(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


class _Dict:
    """``dict`` as a function, without its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict:
        return dict.fromkeys(*args)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"private name {name!r} in a namespace")


@functools.lru_cache(maxsize=64)
def variables(template: str) -> frozenset[str]:
    """Names a template reads and does not set itself, such as ``messages`` and ``tools``.

    >>> sorted(variables("{% for m in messages %}{{ m.role }}{% endfor %}{{ eos_token }}"))
    ['eos_token', 'messages']

    Raises:
        DataError: the template does not parse.
    """
    import jinja2.meta

    try:
        return frozenset(jinja2.meta.find_undeclared_variables(_environment().parse(template)))
    except jinja2.TemplateError as error:
        raise DataError("chat template", found=error, expected="a jinja template") from None


@functools.lru_cache(maxsize=64)
def _compile(template: str) -> jinja2.Template:
    return _environment().from_string(template)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Json,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _with_reasoning(message: JsonObject) -> JsonObject:
    given = [message[key] for key in REASONING_KEYS if message.get(key) is not None]
    if not given:
        return message
    return {"thinking": given[0], **message, "reasoning_content": given[0]}


def _plain(value: Json) -> Any:
    """``value`` rebuilt of JSON types; anything else becomes an inert ``<type>``, for an object's
    methods are not what the sandbox guards."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, tuple):
        return tuple(_plain(entry) for entry in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)
    if callable(dump):
        return _plain(dump())
    return f"<{type(value).__name__}>"
