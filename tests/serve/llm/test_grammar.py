"""Grammars as masks: whatever random choices they allow make a text of the form asked for."""

import json
import re

import jsonschema
import numpy as np
import pytest
import tokenizers
from tests.serve.conftest import allowed_ids

from ziggurat.data.tokenizers import byte_level
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm import grammar
from ziggurat.serve.llm.constraint import Constraint
from ziggurat.serve.llm.grammar import Grammars
from ziggurat.serve.llm.structured import Form
from ziggurat.serve.llm.tool_parsers import CallDelta, TextDelta, hermes
from ziggurat.serve.llm.tools import Function, Tool, ToolUse

pytest.importorskip("llguidance")
END, VOCABULARY = 256, 300  # the model has more logits than the tokenizer has ids


@pytest.fixture(scope="module")
def plain():
    return byte_level({"eos_token": "<|end|>"})


@pytest.fixture(scope="module")
def tagged():
    """A tokenizer with a token for each tag, as Qwen's has."""
    made = byte_level({"eos_token": "<|end|>"})
    tags = [tokenizers.AddedToken(t, special=False) for t in (hermes.OPEN, hermes.CLOSE)]
    made.backend.add_tokens(tags)
    return made


@pytest.fixture(scope="module")
def grammars(plain):
    return Grammars(plain, VOCABULARY)


def walk(tokenizer, make, seed, begin="", limit=400):
    """A text of random choices, and whether it came to its end."""
    matcher, rng = make(), np.random.default_rng(seed)
    assert isinstance(matcher, Constraint)
    tokens = tokenizer.encode(begin)
    for token in tokens:
        matcher.accept(token)
    while len(tokens) < limit:
        if matcher.finished:
            return tokenizer.decode(tokens), True
        mask = matcher.mask()
        assert (mask.dtype, mask.size) == (np.uint32, -(-VOCABULARY // 32))
        token = int(rng.choice(allowed_ids(mask)))
        if token == END:
            return tokenizer.decode(tokens), True
        matcher.accept(token)
        tokens.append(token)
    return tokenizer.decode(tokens), False


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {"tag": {"enum": ["a", "b", None]}},
}


def test_json_of_a_schema_is_valid(plain, grammars):
    make = grammars.compile(Form("json", SCHEMA, "response_format")).result()
    for seed in range(20):
        text, ended = walk(plain, make, seed)
        assert ended
        jsonschema.validate(json.loads(text), SCHEMA)
        assert max(map(len, re.findall(r"[ \t\r\n]+", text)), default=0) <= 32


def test_white_space_as_asked(plain, grammars):
    for whitespace, pattern in (("", ""), (" ?", " ?")):
        form = Form("json", SCHEMA, "structured_outputs", whitespace)
        text, ended = walk(plain, grammars.compile(form).result(), 1)
        assert ended
        outside = re.sub(r'"(?:[^"\\]|\\.)*"', "s", text)
        assert {*re.findall(r"\s+", outside)} <= ({" "} if pattern else set())


@pytest.mark.parametrize(
    ("kind", "content", "pattern"),
    [
        ("regex", r"[a-c]{2,4}\d?", r"[a-c]{2,4}\d?"),
        ("choice", ["yes", 'a "quoted" one', "näh\n"], r'yes|a "quoted" one|näh\n'),
        ("grammar", 'start: "x" WORD\nWORD: /[a-z]{1,3}/', "x[a-z]{1,3}"),
        ("grammar", 'root ::= "x" [a-z] | "y"', "x[a-z]|y"),
        ("json", {"type": "object"}, r"\{(?s:.*)\}?"),
    ],
)
def test_other_kinds(plain, grammars, kind, content, pattern):
    make = grammars.compile(Form(kind, content, "structured_outputs")).result()
    texts = {walk(plain, make, seed) for seed in range(12)}
    assert all(re.fullmatch(pattern, text) for text, _ in texts)
    assert kind == "json" or all(ended for _, ended in texts)
    assert len(texts) > 1


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        ("json", {"type": "thing"}, "Invalid type: thing"),
        ("json", {"not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
        ("json", {"not": {}, "x-guidance": {"lenient": True}}, 'Unimplemented keys: ["not"]'),
        ("json", {"$ref": "#/nowhere"}, "does not exist"),
        ("json", {"$ref": "http://x.invalid/y"}, "does not fetch"),
        ("json", {"enum": []}, "Unsatisfiable"),
        ("json", False, "a schema that nothing fits"),
        ("json", {"const": "\ud800"}, "hex escape"),
        ("json", {"const": "x" * 300_000}, "262144 are the most"),
        ("json", {"allOf": [{"$ref": "#"}] * 600}, "500 are the most"),
        ("regex", "(a", "unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "\ud800", "surrogates not allowed"),
        ("grammar", "start: x", 'unknown name: "x"'),
        ("grammar", "what(", "Failed to convert"),
        ("grammar", "start: " + "(" * 1000, "too deeply nested"),
        ("grammar", "r: r\n" * 501, "501 rules"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_the_reason(grammars, kind, content, said):
    with pytest.raises(RequestError) as caught:
        grammars.compile(Form(kind, content, "response_format")).result()
    assert said in str(caught.value)
    assert (caught.value.status, caught.value.param) == (400, "response_format")
    assert "\n" not in str(caught.value)


ENFORCED = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")
ANNOTATIONS = (
    "int32", "int64", "float", "double", "byte", "binary", "password", "decimal", "path",
    "file-path", "directory-path", "json-string", "idn-email", "iri", "uri-reference", "regex",
    "json-pointer", "of-mine", "", "x" * 100, "a\nb",
)  # fmt: skip


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_a_format_that_the_library_does_not_know_is_an_annotation(grammars, name):
    """Wherever a schema stands; data and names that look like a format stay."""
    text = {"type": "string", "format": name}
    schema = {
        "$defs": {"format": text},
        "type": "object",
        "properties": {
            "format": {"anyOf": [text, {"type": "null"}]},
            "enum": {"type": "array", "items": text, "maxItems": 1},
            "const": {"const": text},
            "ref": {"$ref": "#/$defs/format"},
            "extra": {"type": "object", "additionalProperties": text},
        },
        "required": ["format", "enum", "const", "ref"],
        "additionalProperties": False,
    }
    matcher = grammars.compile(Form("json", schema, "response_format")).result()()
    said = {"format": "any text", "enum": ["x"], "const": text, "ref": "y", "extra": {"a": "z"}}
    for token in json.dumps(said).encode():
        matcher.accept(token)
    assert END in allowed_ids(matcher.mask()) or matcher.finished


@pytest.mark.parametrize("name", ENFORCED)
def test_a_format_that_the_library_knows_is_enforced(grammars, name):
    schema = {"type": "string", "format": name}
    matcher = grammars.compile(Form("json", schema, "response_format")).result()()
    matcher.accept(ord('"'))
    assert ord(" ") not in allowed_ids(matcher.mask())


def test_long_chains_of_references_do_not_end_the_process(grammars):
    """The library follows them on the stack; some thousands were too many for a common thread."""
    last = grammar.MAX_RULES - 1
    deep = {f"d{i}": {"anyOf": [{"allOf": [{"$ref": f"#/$defs/d{i + 1}"}]}]} for i in range(last)}
    schema = {"$ref": "#/$defs/d0", "$defs": deep | {f"d{last}": {"type": "boolean"}}}
    matcher = grammars.compile(Form("json", schema, "response_format")).result()()
    assert {chr(i) for i in allowed_ids(matcher.mask())} == {"t", "f"}


def test_compiled_grammars_are_kept(plain):
    grammars = Grammars(plain, VOCABULARY)
    form = Form("regex", "ab", "structured_outputs")
    makers = [grammars.compile(form).result() for _ in range(3)]
    assert len(grammars._cache) == 1
    first, second = makers[0](), makers[1]()
    first.accept(ord("a"))
    assert allowed_ids(first.mask()) == [ord("b")]
    assert allowed_ids(second.mask()) == [ord("a")], "two generations share a place"
    with pytest.raises(RequestError, match="structured output: found"):
        second.accept(ord("b"))


STRICT = {
    "type": "object",
    "properties": {"x": {"$ref": "#/$defs/n"}},
    "required": ["x"],
    "additionalProperties": False,
    "$defs": {"n": {"type": "integer"}},
}
TOOLS = (
    Tool("function", Function("f", None, STRICT, strict=True)),
    Tool("function", Function("g", None, {"type": "object", "additionalProperties": False})),
)


def parse(text):
    parser = hermes.CallParser()
    deltas = parser.push(text) + parser.finish()
    said = "".join(d.text for d in deltas if isinstance(d, TextDelta))
    calls = []
    for delta in deltas:
        if isinstance(delta, CallDelta):
            if delta.name is not None:
                calls.append([delta.name, ""])
            calls[-1][1] += delta.arguments
    return said, [(name, json.loads(arguments)) for name, arguments in calls]


def check_calls(calls, forced=False):
    for name, arguments in calls:
        assert name in ("f", "g")
        if name == "f":
            assert isinstance(arguments["x"], int)
        else:
            assert arguments == {} if forced else isinstance(arguments, dict)


@pytest.mark.parametrize("which", ["plain", "tagged"])
def test_forced_calls_are_calls(which, request):
    tokenizer = request.getfixturevalue(which)
    grammars = Grammars(tokenizer, VOCABULARY)
    for parallel in (True, False):
        form = hermes.grammar(ToolUse(TOOLS, forced=True, parallel=parallel), tokenizer)
        make = grammars.compile(form).result()
        lengths = set()
        for seed in range(8):
            text, ended = walk(tokenizer, make, seed)
            if ended:
                said, calls = parse(text)
                assert said == ""
                check_calls(calls, forced=True)
                lengths.add(len(calls))
        assert lengths
        assert 0 not in lengths
        assert parallel or lengths == {1}


@pytest.mark.parametrize("which", ["plain", "tagged"])
def test_free_calls_are_checked_once_they_begin(which, request):
    tokenizer = request.getfixturevalue(which)
    grammars = Grammars(tokenizer, VOCABULARY)
    form = hermes.grammar(ToolUse(TOOLS, parallel=False), tokenizer)
    make = grammars.compile(form).result()
    assert walk(tokenizer, make, 1, limit=30)[0], "text alone is an answer"
    found = set()
    for seed in range(8):
        text, ended = walk(tokenizer, make, seed, begin="Well.\n" + hermes.OPEN)
        if ended:  # any object is an argument of g, and a random one may be endless
            said, calls = parse(text)
            assert (said, len(calls)) == ("Well.", 1)
            check_calls(calls)
            found.add(calls[0][0])
    assert "f" in found


def test_tools_beside_a_form_for_the_answer(plain, grammars):
    answer = Form("json", SCHEMA, "response_format")
    form = hermes.grammar(ToolUse(TOOLS, parallel=False), plain, answer)
    make = grammars.compile(form).result()
    kinds = set()
    for seed in range(12):
        text, ended = walk(plain, make, seed)
        if not ended:
            continue
        said, calls = parse(text)
        kinds.add(bool(calls))
        if calls:
            check_calls(calls)
            assert said == ""
        else:
            jsonschema.validate(json.loads(said), SCHEMA)
    assert kinds == {True, False}


def test_a_tool_whose_schema_cannot_be_enforced_is_refused(plain, grammars):
    odd = Tool("function", Function("h", None, {"type": "object", "not": {}}))
    form = hermes.grammar(ToolUse((odd,), forced=True), plain)
    with pytest.raises(RequestError, match=r"tools: found .*Unimplemented keys"):
        grammars.compile(form).result()
