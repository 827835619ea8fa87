"""Grammars compiled against a tokenizer: what structured output and forced tool calls run on.

llguidance (https://github.com/guidance-ai/llguidance) computes, after each token, the set of tokens
that can still lead to a text of the grammar. The engine draws from these alone, so what is
generated to its end is valid by construction.
"""

import collections
import concurrent.futures
import json
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt32

from ziggurat.core.json_types import Json
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.constraint import Constraint
from ziggurat.serve.llm.schema_formats import without_annotations
from ziggurat.serve.llm.structured import Form

if TYPE_CHECKING:
    import llguidance

MAX_GRAMMAR = 256 * 2**10
"""Longest grammar or schema in characters."""
MAX_RULES = 500
"""Most rules of a grammar or references of a schema: the library follows chains of them on the
stack, and some thousands overflow one of 8 MiB."""
CACHED = 256
"""Compiled grammars that are kept, those used last."""

_STACK = 256 * 2**20
_WHITESPACE = r"[ \t\n\r]{1,32}"
_REFERENCE = re.compile(r'"\$(?:ref|dynamicRef)"')

Maker = Callable[[], Constraint]


class Grammars:
    """Compiler of grammars for one model, on threads of its own.

    Args:
        tokenizer: the model's.
        vocab_size: number of the model's logits, which may exceed the tokenizer's ids.
    """

    def __init__(self, tokenizer: HuggingFaceTokenizer, vocab_size: int):
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._cache: collections.OrderedDict[str, Any] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._workers: concurrent.futures.ThreadPoolExecutor | None = None

    def compile(self, form: Form) -> "concurrent.futures.Future[Maker]":
        """Start to compile a grammar; the future's result makes one constraint for each completion.

        The future raises :class:`~ziggurat.serve.errors.RequestError` for a grammar that is wrong,
        too large, or beyond the library; its reason is in the message.
        """
        with self._lock:
            if self._workers is None:
                before = threading.stack_size(_STACK)
                try:  # threads start with their first tasks; both are started here
                    self._workers = concurrent.futures.ThreadPoolExecutor(2, "grammar")
                    both = threading.Barrier(2)
                    for task in [self._workers.submit(both.wait) for _ in range(2)]:
                        task.result()
                finally:
                    threading.stack_size(before)
        return self._workers.submit(self._guarded, form)

    def _guarded(self, form: Form) -> Maker:
        try:
            return self._compile(form)
        except Exception:
            raise
        except BaseException as panic:  # what a defect of the library raises is no Exception
            raise _refused(form, f"a defect of llguidance: {panic}") from None

    def _compile(self, form: Form) -> Maker:
        try:
            text = _grammar(form)
        except (ValueError, RecursionError, TypeError) as error:
            raise _refused(form, error) from None
        with self._lock:
            found = self._cache.pop(text, None)
        compiled = self._fresh(form, text) if found is None else found
        with self._lock:
            self._cache[text] = compiled
            while len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        words = -(-self._vocab_size // 32)
        return lambda: Matcher(compiled.deep_copy(), words)

    def _fresh(self, form: Form, text: str) -> "llguidance.LLMatcher":
        vocabulary = self._read_tokenizer(form)
        import llguidance

        limits = llguidance.LLParserLimits(verbose_errors=False)
        made = llguidance.LLMatcher(vocabulary, text, log_level=0, limits=limits)
        if not made.is_error():
            made.compute_bitmask()  # the first mask builds most of the lexer: not on the engine
        if made.is_error():
            raise _refused(form, made.get_error())
        return made

    def _read_tokenizer(self, form: Form) -> "llguidance.LLTokenizer":
        try:
            import llguidance
        except ModuleNotFoundError:
            raise RequestError(
                form.field,
                found="no package llguidance on the server",
                expected="it installed",
                fix="pip install 'ziggurat[serve]'",
                param=form.field,
            ) from None
        with self._lock:
            if self._vocabulary is None:
                tokenizer = self._tokenizer
                try:
                    self._vocabulary = llguidance.LLTokenizer(
                        tokenizer.backend.to_str(),
                        n_vocab=self._vocab_size,
                        eos_token=list(tokenizer.eos_ids) or None,
                    )
                except ValueError as error:
                    raise RequestError(
                        form.field,
                        found=f"a tokenizer that llguidance cannot read: {_line(error)}",
                        expected="a byte-level or byte-fallback tokenizer",
                        param=form.field,
                    ) from None
            return self._vocabulary


class Matcher:
    """Grammar state of one completion; a :class:`~ziggurat.serve.llm.constraint.Constraint`.

    Args:
        matcher: llguidance's, used by nobody else.
        words: words of a mask.
    """

    def __init__(self, matcher: "llguidance.LLMatcher", words: int):
        self._matcher, self._words = matcher, words

    def mask(self) -> UInt32[np.ndarray, "words"] | None:
        """Bit mask of the ids that may come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: self._words]
        self._check()
        return bits

    def accept(self, token: int) -> None:
        """Advance by a token.

        Raises:
            RequestError: the grammar has become too complex here, or forbids the token.
        """
        self._matcher.consume_token(token)
        self._check()

    @property
    def finished(self) -> bool:
        """Whether nothing more can follow."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            found = _line(self._matcher.get_error())
            raise RequestError("structured output", found=found, expected="a grammar within limits")


def _grammar(form: Form) -> str:
    """The grammar as llguidance takes it."""
    from llguidance import LLMatcher, grammar_from

    if form.kind == "json":
        return LLMatcher.grammar_from_json_schema(schema_text(form.content, form.whitespace))
    if form.kind == "choice":
        text = "start: " + " | ".join(map(json.dumps, form.content))
        _check_size(text, len(form.content) // 100)  # the alternatives of a rule are no chain
        return LLMatcher.grammar_from_lark(text)
    rules = form.content.count(":") if form.kind == "grammar" else 0
    _check_size(form.content, rules)
    if form.kind == "regex":
        return LLMatcher.grammar_from_regex(form.content)
    if form.kind == "tools":
        return LLMatcher.grammar_from_lark(form.content)
    return grammar_from("grammar", form.content)


def schema_text(schema: Json, whitespace: str | None = None) -> str:
    """Text of a JSON schema for llguidance, with the library's options inside.

    Unless told otherwise, white space between the parts of a JSON text is at most 32 characters
    long, lest a small model fall into an endless run of it. Formats that the library does not know
    are left out, as annotations.

    Raises:
        ValueError: it is no schema, or too large.
    """
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ValueError("a schema that nothing fits")
    options = {"whitespace_pattern": _WHITESPACE if whitespace is None else whitespace}
    if whitespace == "":
        options = {"whitespace_flexible": False}
    schema = without_annotations(schema)
    text = json.dumps({**schema, "x-guidance": {**options, "lenient": False}})
    _check_size(text, len(_REFERENCE.findall(text)))
    return text


def _check_size(text: str, rules: int) -> None:
    if len(text) > MAX_GRAMMAR:
        raise ValueError(f"{len(text)} characters, where {MAX_GRAMMAR} are the most")
    if rules > MAX_RULES:
        raise ValueError(f"{rules} rules or references, where {MAX_RULES} are the most")


def _refused(form: Form, reason: object) -> RequestError:
    expected = {"json": "a JSON schema that can be enforced", "regex": "a regular expression"}
    return RequestError(
        form.field,
        found=_line(reason),
        expected=expected.get(form.kind, "a grammar that can be enforced"),
        param=form.field,
    )


def _line(reason: object) -> str:
    line = " ".join(str(reason).replace("<non-verbose/>", "").split())
    return line if len(line) <= 300 else line[:297] + "..."
