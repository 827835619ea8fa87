"""``/tokenize`` and ``/detokenize`` as in vLLM: what a text, or a conversation, costs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ziggurat.core.json_types import Json, JsonObject
from ziggurat.data import HuggingFaceTokenizer, StreamDecoder
from ziggurat.serve.app import ServicePart
from ziggurat.serve.bodies import Body, read
from ziggurat.serve.errors import RequestError, UnknownModel
from ziggurat.serve.http import guarded, json_response
from ziggurat.serve.llm import texts
from ziggurat.serve.llm.off_loop import OffLoop
from ziggurat.serve.llm.policy import DEFAULT, RequestPolicy
from ziggurat.serve.llm.render import render_chat
from ziggurat.serve.llm.tools import Tool, tool_use
from ziggurat.serve.openai.messages import conversation

MOST_TOKENS = 2**16
"""Most ids that are turned into text at once, or the model's context if that is longer."""
MOST_COUNTED = 2**20
"""Tokens of a text that are told, or the model's context if that is longer."""
_AT_ONCE = 2**14


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Tokenizer of a served model, with the number of its ids and its longest text."""

    tokenizer: HuggingFaceTokenizer
    vocab_size: int
    max_length: int
    policy: RequestPolicy = DEFAULT
    """How the model's requests are read."""


class TokenizeRequest(Body, kw_only=True):
    """Body of ``POST /tokenize``: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Json] | None = None
    tools: list[Tool] | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: JsonObject | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    def check(self) -> None:
        """Refuse fields that do not go together."""
        if (self.prompt is None) == (self.messages is None):
            found = "both" if self.messages is not None else "neither"
            raise RequestError("prompt or messages", found=found, expected="one", param="prompt")
        of_chat = ("tools", "add_generation_prompt", "chat_template_kwargs")
        wrong = of_chat if self.messages is None else ("add_special_tokens",)
        for name in wrong:
            if getattr(self, name) is not None:
                other = "messages" if self.messages is None else "prompt"
                raise RequestError(name, found=f"no {other}", expected=other, param=name)


class DetokenizeRequest(Body, kw_only=True):
    """Body of ``POST /detokenize``."""

    token_ids: ClassVar[str] = "tokens"

    model: str | None = None
    tokens: list[int]


class TokenService:
    """Endpoints ``/tokenize`` and ``/detokenize`` of all served models, by name.

    A request that names no model means the first.
    """

    def __init__(self, vocabularies: Mapping[str, Vocabulary], off_loop: OffLoop | None = None):
        self._vocabularies = dict(vocabularies)
        self._off_loop = off_loop or OffLoop()

    def part(self) -> ServicePart:
        """Routes of the endpoints."""
        post = {"/tokenize": self._tokenize, "/detokenize": self._detokenize}
        return ServicePart(
            routes=[Route(path, guarded(f), methods=["POST"]) for path, f in post.items()]
        )

    async def _tokenize(self, request: Request) -> Response:
        async with self._off_loop.read(request) as body:
            return await body.run(self._tokenized, body.take())

    def _tokenized(self, text: bytes) -> Response:
        parsed = read(TokenizeRequest, text)
        known = self._vocabulary(parsed.model)
        ids = _ids(known, parsed)
        body = {"count": len(ids), "max_model_len": known.max_length, "tokens": ids}
        if parsed.return_token_strs:
            names = map(known.tokenizer.backend.id_to_token, ids)
            body["token_strs"] = [name or "" for name in names]
        return json_response(body)

    async def _detokenize(self, request: Request) -> Response:
        async with self._off_loop.read(request) as body:
            return await body.run(self._detokenized, body.take())

    def _detokenized(self, text: bytes) -> Response:
        parsed = read(DetokenizeRequest, text)
        known = self._vocabulary(parsed.model)
        most = max(known.max_length, MOST_TOKENS)
        if len(parsed.tokens) > most:
            found, expected = f"{len(parsed.tokens)} tokens", f"at most {most}"
            raise RequestError("tokens", found=found, expected=expected, param="tokens")
        unknown = next((i for i in parsed.tokens if not 0 <= i < known.vocab_size), None)
        if unknown is not None:
            expected = f"ids from 0 to {known.vocab_size - 1}"
            raise RequestError("tokens", found=unknown, expected=expected, param="tokens")
        return json_response({"prompt": _text(known.tokenizer, parsed.tokens)})

    def _vocabulary(self, name: str | None) -> Vocabulary:
        name = next(iter(self._vocabularies)) if name is None else name
        if name not in self._vocabularies:
            raise UnknownModel.of(name, self._vocabularies)
        return self._vocabularies[name]


def _text(tokenizer: HuggingFaceTokenizer, ids: Sequence[int]) -> str:
    """The text of ids; long ones one by one where that is possible, since the library holds the
    interpreter's lock until it has decoded them all."""
    if len(ids) <= _AT_ONCE or not tokenizer.decodes_bytes:
        return tokenizer.decode(ids, skip_special_tokens=False)
    decoder = StreamDecoder(tokenizer, skip_special_tokens=False)
    return "".join(map(decoder.push, ids)) + decoder.finish()


def _ids(known: Vocabulary, parsed: TokenizeRequest) -> Sequence[int]:
    policy, most = known.policy, max(known.max_length, MOST_COUNTED)
    if parsed.messages is None:
        assert parsed.prompt is not None
        return texts.encode(
            known.tokenizer,
            [parsed.prompt],
            "prompt",
            special=parsed.add_special_tokens is not False,
            special_tokens=policy.control_in_prompts,
            max_length=most,
        )[0]
    use = tool_use(parsed.tools, None, None)
    return render_chat(
        known.tokenizer,
        conversation(parsed.messages),
        use.for_template() if use else None,
        parsed.add_generation_prompt is not False,
        parsed.chat_template_kwargs,
        content_format=policy.content_format,
        special_tokens=policy.control_in_messages,
        max_length=most,
        tool_call_parser=policy.tool_call_parser,
    )
