"""Which parts an application gets for the models at hand: a generator, an embedder, a recogniser of
speech, or several."""

import dataclasses

from prometheus_client import CollectorRegistry

from ziggurat.data import HuggingFaceTokenizer
from ziggurat.serve.anthropic.message_service import MessageService
from ziggurat.serve.app import ServicePart
from ziggurat.serve.llm.engine import Engine
from ziggurat.serve.llm.image_reader import ImageReader
from ziggurat.serve.llm.metrics import Metrics
from ziggurat.serve.llm.off_loop import OffLoop
from ziggurat.serve.llm.policy import DEFAULT, RequestPolicy
from ziggurat.serve.memory import RequestMemory
from ziggurat.serve.openai.embeddings import EmbeddingService, TextEmbedder
from ziggurat.serve.openai.response_service import ResponseService
from ziggurat.serve.openai.scores import ScoreService, TextScorer
from ziggurat.serve.openai.service import TextService
from ziggurat.serve.openai.tokens import TokenService, Vocabulary
from ziggurat.serve.openai.transcriptions import SpeechToText, TranscriptionService


@dataclasses.dataclass(frozen=True)
class Generator:
    """A generating model with the name that requests use."""

    name: str
    engine: Engine
    policy: RequestPolicy = DEFAULT
    """How requests are read."""
    images: ImageReader | None = None
    """Reads the pictures of messages; ``None``: they are refused."""


@dataclasses.dataclass(frozen=True)
class Embedder:
    """A model that embeds texts or scores pairs of them, with its tokenizer and its name in
    requests."""

    name: str
    embedder: TextEmbedder | None
    """Gives vectors; ``None``: a cross-encoder, which only scores."""
    tokenizer: HuggingFaceTokenizer
    scorer: TextScorer | None = None
    """Scores pairs."""


@dataclasses.dataclass(frozen=True)
class Recognizer:
    """A model that transcribes speech, with its name in requests."""

    name: str
    speech: SpeechToText


def openai_parts(
    registry: CollectorRegistry,
    generator: Generator | None = None,
    embedder: Embedder | None = None,
    memory: RequestMemory | None = None,
    recognizer: Recognizer | None = None,
) -> list[ServicePart]:
    """Build OpenAI's endpoints for the given models, with ``/tokenize`` and ``/detokenize``.

    Args:
        registry: gets the models' metrics.
        generator: answers ``/v1/completions``, ``/v1/chat/completions``, ``/v1/responses`` and
            ``/v1/messages``.
        embedder: answers ``/v1/embeddings``, ``/score`` and ``/rerank``, as far as it can.
        memory: budget of the bytes of all requests, if they share it with others; default one of
            their own, of 256 MiB. Audio has one of its own in any case.
        recognizer: answers ``/v1/audio/transcriptions`` and ``/v1/audio/translations``.
    """
    off_loop = OffLoop(memory)
    metrics = Metrics(registry)
    parts: list[ServicePart] = []
    vocabularies: dict[str, Vocabulary] = {}
    if generator is not None:
        engine = generator.engine
        text = TextService(
            engine, generator.name, metrics, generator.policy, off_loop, generator.images
        )
        parts += [text.part(), ResponseService(text).part(), MessageService(text).part()]
        vocabularies[generator.name] = Vocabulary(
            engine.tokenizer, engine.vocab_size, engine.max_length, generator.policy
        )
    if embedder is not None:
        name, vectors, scorer = embedder.name, embedder.embedder, embedder.scorer
        if vectors is not None:
            tokenizer = embedder.tokenizer
            made = EmbeddingService(vectors, tokenizer, name, metrics, off_loop=off_loop)
            parts.append(made.part())
        if scorer is not None:
            listed = vectors is None
            scores = ScoreService(scorer, name, metrics, listed=listed, off_loop=off_loop)
            parts.append(scores.part())
        limits = vectors or scorer
        assert limits is not None
        vocabularies.setdefault(
            embedder.name, Vocabulary(embedder.tokenizer, limits.vocab_size, limits.max_length)
        )
    if recognizer is not None:
        parts.append(TranscriptionService(recognizer.speech, recognizer.name, metrics).part())
    if vocabularies:
        parts.append(TokenService(vocabularies, off_loop).part())
    return parts
