"""``/v1/audio/transcriptions`` and ``/v1/audio/translations``: speech to text, as OpenAI answers.

What transcribes is whatever implements :class:`SpeechToText`. A long audio takes its turn window by
window, so that others need not wait for its end, and stops when its client goes.
"""

import dataclasses
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, Protocol, get_args, runtime_checkable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ziggurat.core.errors import DataError
from ziggurat.models import subtitles
from ziggurat.models.transcriber import Transcription, TranscriptionOptions
from ziggurat.serve.app import ServicePart
from ziggurat.serve.bodies import short
from ziggurat.serve.errors import RequestError, UnknownModel
from ziggurat.serve.http import guarded, json_response, unless_gone
from ziggurat.serve.llm.metrics import Metrics, ModelMetrics
from ziggurat.serve.llm.off_loop import OffLoop
from ziggurat.serve.memory import RequestMemory
from ziggurat.serve.multipart import Part, read_form
from ziggurat.serve.openai.call_queue import CallQueue

MOST_BYTES = 25 * 2**20
"""Largest body of a request; OpenAI's limit of a file."""
MOST_SECONDS = 3600.0
"""Longest audio of a request."""
MEMORY = 16 * MOST_BYTES
"""Bytes of all bodies and spectrograms under way."""
Format = Literal["json", "text", "srt", "verbose_json", "vtt"]
Task = Literal["transcribe", "translate"]
FIELDS: dict[Task, tuple[str, ...]] = {
    "transcribe": (
        *("file", "model", "language", "prompt", "response_format", "temperature"),
        *("timestamp_granularities[]", "timestamp_granularities", "stream"),
    ),
    "translate": ("file", "model", "prompt", "response_format", "temperature"),
}
"""Fields of the two endpoints that are applied."""


@runtime_checkable
class TranscriptionSteps(Protocol):
    """A transcription that is advanced window by window, on one thread at a time."""

    def advance(self) -> bool:
        """Decode the next window; whether there is another one."""
        ...

    def result(self) -> Transcription:
        """The text so far."""
        ...

    @property
    def size(self) -> int:
        """Bytes that it holds until its end."""
        ...


@runtime_checkable
class SpeechToText(Protocol):
    """Begins transcriptions; called on any thread."""

    def begin(
        self, audio: bytes, options: TranscriptionOptions, most_seconds: float
    ) -> TranscriptionSteps:
        """A transcription of a WAV file's content.

        Raises:
            DataError: the audio or an option cannot be used.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TranscriptionRequest:
    """Fields of a request, checked."""

    audio: bytes
    options: TranscriptionOptions
    form: Format


class TranscriptionService:
    """Endpoints of one model of speech; requests take turns.

    Args:
        speech: transcribes.
        name: the model's name in requests.
        metrics: where figures go.
        max_queue: requests that may wait; more are refused.
    """

    def __init__(self, speech: SpeechToText, name: str, metrics: Metrics, max_queue: int = 64):
        self._speech, self._name = speech, name
        self._metrics, self._queue = ModelMetrics(metrics, name), CallQueue(max_queue)
        # of its own: bodies of other endpoints may not be as large
        self._off_loop = OffLoop(RequestMemory(MOST_BYTES, MEMORY))
        self._created = int(time.time())

    def part(self) -> ServicePart:
        """Routes and model card of the endpoints."""
        card = {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "ziggurat",
        }
        paths: dict[str, Task] = {
            "/v1/audio/transcriptions": "transcribe",
            "/v1/audio/translations": "translate",
        }
        routes = [
            Route(path, guarded(self._handler(task)), methods=["POST"])
            for path, task in paths.items()
        ]
        return ServicePart(routes=routes, cards=[card])

    def _handler(self, task: Task) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            begun, kind = time.monotonic(), request.headers.get("content-type", "")
            async with self._off_loop.read(request, MOST_BYTES) as body:
                form, job = await body.run(self._begin, body.take(), kind, task)
                kept = body.keep(job.size)
            try:
                found = await unless_gone(request.receive, self._run(job))
            finally:
                kept.close()
            tokens = sum(len(segment.tokens) for segment in found.segments)
            self._metrics.transcribed(tokens, time.monotonic() - begun)
            return answer(found, form, task)

        return handle

    def _begin(self, body: bytes, kind: str, task: Task) -> tuple[Format, TranscriptionSteps]:
        asked = request_of(read_form(body, kind), self._name, task)
        try:
            return asked.form, self._speech.begin(asked.audio, asked.options, MOST_SECONDS)
        except DataError as error:
            param = error.what if error.what in FIELDS[task] else "file"
            raise RequestError(
                error.what,
                found=error.found,
                expected=error.expected,
                fix=error.fix,
                param=param,
            ) from None

    async def _run(self, job: TranscriptionSteps) -> Transcription:
        while await self._queue.run(job.advance):
            pass
        return job.result()


def request_of(parts: Sequence[Part], model: str, task: Task) -> TranscriptionRequest:
    """A request from the parts of its body.

    Args:
        parts: fields, and the file.
        model: the model that is served.
        task: which endpoint is asked.

    Raises:
        RequestError: a field is missing, unknown, given twice, not applied or wrong.
    """
    given: dict[str, Part] = {}
    for part in parts:
        if part.name not in FIELDS[task]:
            raise RequestError(
                short(part.name),
                found="a field that is unknown or not applied",
                expected="one of " + ", ".join(FIELDS[task]),
                param=part.name,
            )
        if part.name in given and not part.name.startswith("timestamp_granularities"):
            raise RequestError(part.name, found="it twice", expected="it once", param=part.name)
        if part.name.startswith("timestamp_granularities"):
            _check_granularity(part)
        given[part.name] = part
    for name in ("file", "model"):
        if name not in given:
            raise RequestError(name, found="nothing", expected="a value", param=name)
    named = given["model"].text
    if named != model:
        raise UnknownModel.of(named, [model])
    texts = {name: part.text for name, part in given.items() if name != "file"}
    form = texts.get("response_format", "json")
    if form not in get_args(Format):
        known = ", ".join(get_args(Format))
        raise RequestError(
            "response_format", found=short(form), expected=known, param="response_format"
        )
    _check_sampling(texts)
    granular = any(name.startswith("timestamp_granularities") for name in given)
    if granular and form != "verbose_json":
        name = "timestamp_granularities"
        raise RequestError(
            name, found=f"it with {form}", expected="it with verbose_json", param=name
        )
    options = TranscriptionOptions(
        language=texts.get("language") or None,
        task=task,
        timestamps=form in ("srt", "vtt", "verbose_json"),
        prompt=texts.get("prompt"),
    )
    return TranscriptionRequest(given["file"].content, options, form)  # type: ignore[arg-type]


def _check_granularity(part: Part) -> None:
    if part.text != "segment":
        raise RequestError(
            "timestamp_granularities",
            found=short(part.text),
            expected="segment: times of words are not computed",
            param="timestamp_granularities",
        )


def _check_sampling(texts: dict[str, str]) -> None:
    """Refuse a temperature, as decoding is greedy, and streams."""
    try:
        greedy = float(texts.get("temperature", "0")) == 0
    except ValueError:
        greedy = False
    if not greedy:
        raise RequestError(
            "temperature",
            found=short(texts["temperature"]),
            expected="0: decoding is greedy",
            param="temperature",
        )
    if texts.get("stream", "false").lower() not in ("false", "0"):
        raise RequestError("stream", found="true", expected="false", param="stream")


def answer(found: Transcription, form: Format, task: Task) -> Response:
    """The response to a request."""
    timed = [(s.start, s.end, s.text) for s in found.segments]
    if form == "text":
        return PlainTextResponse(found.text + "\n")
    if form == "srt":
        return PlainTextResponse(subtitles.srt(timed))
    if form == "vtt":
        return PlainTextResponse(subtitles.vtt(timed), media_type="text/vtt")
    if form == "json":
        return json_response({"text": found.text})
    segments = [
        {
            "id": number,
            "seek": round(segment.window * 100),
            "start": segment.start,
            "end": segment.end,
            "text": segment.text,
            "tokens": list(segment.tokens),
            "temperature": 0.0,
            "avg_logprob": segment.avg_logprob,
            "compression_ratio": segment.compression_ratio,
            "no_speech_prob": segment.no_speech_prob,
        }
        for number, segment in enumerate(found.segments)
    ]
    return json_response(
        {
            "task": task,
            "language": "en" if task == "translate" else found.language,
            "duration": found.duration,
            "text": found.text,
            "segments": segments,
        }
    )
