"""``/v1/embeddings``: texts to vectors, as OpenAI answers.

What embeds is whatever implements :class:`TextEmbedder`; an encoder with its pooling, usually.
"""

import base64
import time
from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ziggurat.core.json_types import Json
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.serve.app import ServicePart
from ziggurat.serve.bodies import MAX_TEXTS, Body, read
from ziggurat.serve.errors import ContextTooLong, RequestError, UnknownModel
from ziggurat.serve.http import guarded, json_response, unless_gone
from ziggurat.serve.llm import texts
from ziggurat.serve.llm.metrics import Metrics, ModelMetrics
from ziggurat.serve.llm.off_loop import OffLoop
from ziggurat.serve.openai.call_queue import CallQueue


@runtime_checkable
class TextEmbedder(Protocol):
    """Interface of an embedder of token ids; called on one thread at a time."""

    @property
    def vocab_size(self) -> int:
        """Number of ids that the embedder accepts."""
        ...

    @property
    def max_length(self) -> int:
        """Longest text in tokens."""
        ...

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        ...

    def embed(self, ids: Sequence[Sequence[int]]) -> Float[np.ndarray, "b d"]:
        """One float32 vector for each text."""
        ...


class EmbeddingRequest(Body, kw_only=True):
    """Body of ``POST /v1/embeddings``."""

    token_ids: ClassVar[str] = "input"

    model: str
    input: str | list[Json]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    add_special_tokens: bool | None = None
    user: str | None = None


class EmbeddingService:
    """Endpoint ``/v1/embeddings`` of one embedder.

    Requests wait for each other; the texts of one are embedded together.

    Args:
        embedder: makes the vectors.
        tokenizer: its tokenizer.
        name: the model's name in requests.
        metrics: where figures go.
        max_queue: requests that may wait; more are refused.
        off_loop: reads bodies and works on them; default one of its own.
    """

    def __init__(
        self,
        embedder: TextEmbedder,
        tokenizer: HuggingFaceTokenizer,
        name: str,
        metrics: Metrics,
        max_queue: int = 64,
        off_loop: OffLoop | None = None,
    ):
        self._embedder, self._tokenizer, self._name = embedder, tokenizer, name
        self._metrics = ModelMetrics(metrics, name)
        self._queue = CallQueue(max_queue)
        self._off_loop = off_loop or OffLoop()
        self._created = int(time.time())

    def part(self) -> ServicePart:
        """Routes and model card of the endpoint."""
        card = {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "ziggurat",
            "max_model_len": self._embedder.max_length,
        }
        return ServicePart(
            routes=[Route("/v1/embeddings", guarded(self._embeddings), methods=["POST"])],
            cards=[card],
        )

    async def _embeddings(self, request: Request) -> Response:
        begun = time.monotonic()
        async with self._off_loop.read(request) as body:
            ids, base64_encoded = await body.run(self._ids, body.take())
        vectors = await unless_gone(request.receive, self._queue.run(self._embedder.embed, ids))
        tokens = sum(map(len, ids))
        self._metrics.embedded(tokens, time.monotonic() - begun)
        data = [
            {"object": "embedding", "index": index, "embedding": _shown(vector, base64_encoded)}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_response({"object": "list", "data": data, "model": self._name, "usage": usage})

    def _ids(self, body: bytes) -> tuple[list[Sequence[int]], bool]:
        """Token ids of each text of a body, and whether vectors are asked for in base64."""
        parsed = read(EmbeddingRequest, body, most_ids=self._embedder.max_length)
        if parsed.model != self._name:
            raise UnknownModel.of(parsed.model, [self._name])
        dimension = self._embedder.dimension
        if parsed.dimensions not in (None, dimension):
            raise RequestError(
                "dimensions",
                found=parsed.dimensions,
                expected=f"{dimension}, the model's",
                fix="this model's vectors cannot be shortened",
                param="dimensions",
            )
        listed = texts.listed(parsed.input, "input")
        if len(listed) > MAX_TEXTS:
            expected = f"at most {MAX_TEXTS} texts"
            raise RequestError("input", found=len(listed), expected=expected, param="input")
        special = parsed.add_special_tokens is not False
        ids = texts.encode(self._tokenizer, listed, "input", special=special)
        known = self._embedder.vocab_size
        for number, entry in enumerate(ids):
            _check_ids(f"input {number}", entry, self._embedder.max_length, known)
        return ids, parsed.encoding_format == "base64"


def _check_ids(what: str, ids: Sequence[int], longest: int, known: int) -> None:
    if not ids:
        raise RequestError(what, found="no tokens", expected="at least one", param="input")
    if len(ids) > longest:
        raise ContextTooLong(
            what,
            found=f"{len(ids)} tokens",
            expected=f"at most {longest}",
            fix="shorten the text",
            param="input",
        )
    unknown = next((i for i in ids if not 0 <= i < known), None)
    if unknown is not None:
        expected = f"ids from 0 to {known - 1}"
        raise RequestError(what, found=unknown, expected=expected, param="input")


def _shown(vector: np.ndarray, base64_encoded: bool) -> list[float] | str:
    if base64_encoded:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
