"""``/score`` and ``/rerank``: how well pairs of texts belong together, as vLLM, Jina and Cohere
answer.

What scores is whatever implements :class:`TextScorer`: a cross-encoder, or vectors of both texts.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ziggurat.core.errors import DataError
from ziggurat.core.json_types import JsonObject
from ziggurat.serve.app import ServicePart
from ziggurat.serve.bodies import Body, read, short
from ziggurat.serve.errors import RequestError, UnknownModel
from ziggurat.serve.http import guarded, json_response, unless_gone
from ziggurat.serve.llm.metrics import Metrics, ModelMetrics
from ziggurat.serve.llm.off_loop import OffLoop
from ziggurat.serve.openai.call_queue import CallQueue

MOST_PAIRS = 2048
"""Most pairs of texts in one request."""
MOST_CHARACTERS = 1_000_000
"""Most characters of all texts of a request: the tokenizer reads them before they are cut."""


@runtime_checkable
class TextScorer(Protocol):
    """Scores pairs of texts; called on one thread at a time."""

    @property
    def vocab_size(self) -> int:
        """Ids that it takes are below this."""
        ...

    @property
    def max_length(self) -> int:
        """Longest row in tokens; longer texts are cut."""
        ...

    def score(self, pairs: Sequence[tuple[str, str]]) -> tuple[Float[np.ndarray, "n"], int]:
        """How well the texts of each pair belong together, and how many tokens were read."""
        ...


class ScoreRequest(Body, kw_only=True):
    """The body of ``POST /score``: one text against one or many, or many pairs."""

    model: str
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    user: str | None = None


class RerankRequest(Body, kw_only=True):
    """The body of ``POST /rerank``."""

    model: str
    query: str
    documents: list[str | JsonObject]
    top_n: int | None = None
    return_documents: bool | None = None
    user: str | None = None


class ScoreService:
    """``/score`` and ``/rerank`` over one scorer; requests wait for each other.

    Args:
        scorer: gives the scores.
        name: the model's name in requests.
        metrics: where figures go.
        listed: whether ``/v1/models`` is to list it; no where another service lists the model.
        max_queue: requests that may wait; more are refused.
        off_loop: reads bodies and works on them; default one of its own.
    """

    def __init__(
        self,
        scorer: TextScorer,
        name: str,
        metrics: Metrics,
        *,
        listed: bool = True,
        max_queue: int = 64,
        off_loop: OffLoop | None = None,
    ):
        self._off_loop = off_loop or OffLoop()
        self._scorer, self._name, self._listed = scorer, name, listed
        self._metrics, self._queue = ModelMetrics(metrics, name), CallQueue(max_queue)
        self._created = int(time.time())

    def part(self) -> ServicePart:
        """Routes and model card of the endpoints."""
        card = {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "ziggurat",
            "max_model_len": self._scorer.max_length,
        }
        paths = {
            **dict.fromkeys(("/score", "/v1/score"), self._score),
            **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), self._rerank),
        }
        routes = [Route(path, guarded(call), methods=["POST"]) for path, call in paths.items()]
        return ServicePart(routes=routes, cards=[card] if self._listed else [])

    async def _score(self, request: Request) -> Response:
        async with self._off_loop.read(request) as body:
            pairs = await body.run(self._pairs, body.take())
        scores, tokens = await self._scores(request, pairs)
        data = [
            {"index": index, "object": "score", "score": float(score)}
            for index, score in enumerate(scores)
        ]
        return json_response(
            {
                "id": f"score-{uuid.uuid4().hex}",
                "object": "list",
                "created": int(time.time()),
                "model": self._name,
                "data": data,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    async def _rerank(self, request: Request) -> Response:
        async with self._off_loop.read(request) as body:
            parsed, documents = await body.run(self._documents, body.take())
        pairs = [(parsed.query, document) for document in documents]
        scores, tokens = await self._scores(request, pairs)
        order = sorted(range(len(documents)), key=lambda i: -float(scores[i]))
        results: list[JsonObject] = []
        for i in order[: parsed.top_n or len(order)]:
            result: JsonObject = {"index": i, "relevance_score": float(scores[i])}
            if parsed.return_documents is not False:
                result["document"] = {"text": documents[i]}
            results.append(result)
        return json_response(
            {
                "id": f"rerank-{uuid.uuid4().hex}",
                "model": self._name,
                "results": results,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    def _pairs(self, body: bytes) -> list[tuple[str, str]]:
        """Pairs of a body of ``/score``."""
        parsed = read(ScoreRequest, body)
        self._check_model(parsed.model)
        pairs = pairs_of(parsed)
        _check(pairs)
        return pairs

    def _documents(self, body: bytes) -> tuple[RerankRequest, list[str]]:
        """A body of ``/rerank``, and its documents' texts."""
        parsed = read(RerankRequest, body)
        self._check_model(parsed.model)
        documents = [document_text(entry) for entry in parsed.documents]
        if not documents:
            raise RequestError(
                "documents", found="none", expected="at least one", param="documents"
            )
        if parsed.top_n is not None and parsed.top_n < 0:
            raise RequestError(
                "top_n", found=parsed.top_n, expected="a number >= 0; 0: all", param="top_n"
            )
        _check([(parsed.query, document) for document in documents])
        return parsed, documents

    def _check_model(self, model: str) -> None:
        if model != self._name:
            raise UnknownModel.of(model, [self._name])

    async def _scores(
        self, request: Request, pairs: list[tuple[str, str]]
    ) -> tuple[Float[np.ndarray, "n"], int]:
        begun = time.monotonic()
        try:
            call = self._queue.run(self._scorer.score, pairs)
            scores, tokens = await unless_gone(request.receive, call)
        except DataError as error:
            raise RequestError("texts", found=error.found, expected=error.expected) from None
        self._metrics.embedded(tokens, time.monotonic() - begun)
        return scores, tokens


def pairs_of(parsed: ScoreRequest) -> list[tuple[str, str]]:
    """The pairs that a request asks for.

    >>> pairs_of(ScoreRequest(model="m", text_1="q", text_2=["a", "b"]))
    [('q', 'a'), ('q', 'b')]

    Raises:
        RequestError: a side is missing, stands under two names or is empty, or the numbers of texts
            do not match.
    """
    sides = []
    for names in (("text_1", "queries"), ("text_2", "documents")):
        given = {name: x for name in names if (x := getattr(parsed, name)) is not None}
        if len(given) != 1:
            raise RequestError(
                " and ".join(given) or names[0],
                found="both" if given else "absent",
                expected=f"one of {' and '.join(names)}",
                param=names[0],
            )
        ((name, value),) = given.items()
        sides.append([value] if isinstance(value, str) else value)
        if not sides[-1]:
            raise RequestError(name, found="none", expected="at least one text", param=name)
    first, second = sides
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        raise RequestError(
            "text_1 and text_2",
            found=f"{len(first)} and {len(second)} texts",
            expected="one text and any number, or as many of each",
            param="text_2",
        )
    return list(zip(first, second))


def document_text(entry: str | JsonObject) -> str:
    """A document's text, which Jina's clients send as ``{"text": ...}``.

    Raises:
        RequestError: it has no text, or more than a text.
    """
    text = entry if isinstance(entry, str) else entry.get("text")
    if not isinstance(text, str) or (isinstance(entry, dict) and entry.keys() != {"text"}):
        raise RequestError(
            "documents",
            found=short(entry),
            expected='texts, or objects such as {"text": "..."}',
            param="documents",
        )
    return text


def _check(pairs: list[tuple[str, str]]) -> None:
    if len(pairs) > MOST_PAIRS:
        expected = f"at most {MOST_PAIRS} pairs of texts"
        raise RequestError("request", found=len(pairs), expected=expected)
    characters = sum(map(len, {text for pair in pairs for text in pair}))
    if characters > MOST_CHARACTERS:
        expected = f"at most {MOST_CHARACTERS:,} characters"
        raise RequestError("texts", found=f"{characters:,} characters", expected=expected)
