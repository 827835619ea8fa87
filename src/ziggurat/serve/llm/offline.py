"""Request without a server: ``LLM(path).generate(prompts)`` and ``.chat(messages)``."""

import collections
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from ziggurat.core import hub
from ziggurat.core.errors import ModelError
from ziggurat.mesh import Layout
from ziggurat.models.loading import pretrained, pretrained_vision_language
from ziggurat.models.loading.described import described
from ziggurat.models.loading.pretrained import Pretrained
from ziggurat.models.loading.pretrained_vision_language import PretrainedVisionLanguage
from ziggurat.nn.precision import Precision
from ziggurat.serve.errors import QueueFull, RequestError
from ziggurat.serve.llm.devices import MeshChoice, check_divides, serving_layout
from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.llm.generation_defaults import sampling_defaults
from ziggurat.serve.llm.grammar import Grammars, Maker
from ziggurat.serve.llm.image_reader import ImageLimits, ImageReader
from ziggurat.serve.llm.output_text import FinishReason, TokenEvent, TokenLogprob
from ziggurat.serve.llm.prompt_logprobs import PromptLogprobs
from ziggurat.serve.llm.render import render_chat
from ziggurat.serve.llm.request import Request
from ziggurat.serve.llm.sampling import SamplingParams
from ziggurat.serve.llm.structured import Form, FormKind

Message = Mapping[str, Any]
Tool = Mapping[str, Any]


@dataclasses.dataclass
class Completion:
    """One finished generation."""

    text: str = ""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    """All tokens, an end id included."""
    finish_reason: FinishReason = "cancelled"
    logprobs: list[TokenLogprob] = dataclasses.field(default_factory=list)
    prompt_logprobs: PromptLogprobs | None = None
    """Log-probabilities of the prompt's tokens but the first, if asked for."""
    stop_text: str | None = None
    """Stop text at which it ended."""

    def add(self, event: TokenEvent) -> None:
        """Append one event of this completion."""
        self.text += event.text
        self.token_ids.append(event.token)
        self.logprobs += event.logprobs
        if event.prompt_logprobs is not None:
            self.prompt_logprobs = event.prompt_logprobs
        self.finish_reason = event.finish_reason or self.finish_reason
        self.stop_text = event.stop_text


@dataclasses.dataclass(frozen=True)
class RequestOutput:
    """Completions of one prompt."""

    prompt_ids: list[int]
    completions: list[Completion]
    """``n`` of them."""

    @property
    def text(self) -> str:
        """Text of the first completion."""
        return self.completions[0].text


class LLM:
    """A model that generates text in this process.

    Args:
        model: a path that :func:`ziggurat.models.loading.pretrained.load` reads, or what it gave.
        settings: limits of the engine.
        precision: parameter and compute types, for a path; default float32.
        images: limits on the pictures of a request, for a model that reads images.
        mesh: devices to shard the model over, as ``"tensor=2"``, ``{"tensor": 2, "expert": 2}`` or
            a :class:`ziggurat.mesh.MeshConfig`; default the first one alone. The weights of a path
            are read into their shards, never whole onto one device.

    Example::

        llm = LLM("runs/tiny-python")
        llm.generate("def add(a, b):", SamplingParams(temperature=0, max_tokens=32))[0].text

    Raises:
        ZigguratError: the model cannot be read, or the context is longer than it allows.
        ShardingError: there are too few devices, or the model does not divide over the mesh; the
            sizes that do are named.
    """

    def __init__(
        self,
        model: str | Path | Pretrained,
        settings: EngineConfig | None = None,
        *,
        precision: Precision | None = None,
        images: ImageLimits | None = None,
        mesh: MeshChoice | None = None,
    ):
        layout = None if mesh is None else serving_layout(mesh)
        if not isinstance(model, Pretrained):
            model = _loaded(model, precision, layout)
        self.name, self.tokenizer = model.name, model.tokenizer
        self.images: ImageReader | None = None
        """Reads pictures, if the model does."""
        if isinstance(model, PretrainedVisionLanguage):
            self.images = ImageReader(model, images)
        spec = None if self.images is None else self.images.spec
        self.engine = Engine(
            model.model, model.params, model.tokenizer, settings, mesh=layout, images=spec
        )
        self.sampling_defaults = sampling_defaults(model.tokenizer.generation_config)
        """Sampling parameters that the model's ``generation_config.json`` recommends."""
        self._grammars = Grammars(model.tokenizer, self.engine.vocab_size)

    def generate(
        self,
        prompts: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Continue one prompt or several, each a text or token ids; they are served together.

        Args:
            prompts: one or several.
            params: for all prompts, or one for each; default those that the model recommends.

        Raises:
            RequestError: a prompt is empty or too long, or there are more or fewer ``params``.
        """
        single = isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], int))
        listed: Any = [prompts] if single else prompts
        encoded = [
            self.tokenizer.encode(prompt, add_special_tokens=True)
            if isinstance(prompt, str)
            else list(prompt)
            for prompt in listed
        ]
        return self._serve(encoded, params)

    @overload
    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Tool] | None = None,
    ) -> RequestOutput: ...

    @overload
    def chat(
        self,
        messages: Sequence[Sequence[Message]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Tool] | None = None,
    ) -> list[RequestOutput]: ...

    def chat(
        self, messages: Any, params: Any = None, *, tools: Sequence[Tool] | None = None
    ) -> RequestOutput | list[RequestOutput]:
        """Answer a conversation, or several together.

        Args:
            messages: a conversation or several, as the chat template reads them; what they say is
                text, also where it looks like a special token.
            params: for all conversations, or one for each; default those that the model recommends.
            tools: what the model may call, as in OpenAI's ``tools``; its calls stand in the text;
                :func:`ziggurat.serve.llm.tool_parsers.parser_for` finds the parser.

        Raises:
            RequestError: the model has no chat template, or it rejects the messages.
        """
        single = not messages or isinstance(messages[0], Mapping)
        talks = [messages] if single else messages
        outputs = self._serve([render_chat(self.tokenizer, m, tools) for m in talks], params)
        return outputs[0] if single else outputs

    def constraint(self, kind: FormKind, content: Any) -> Maker:
        """Constraint on the form of completions: a value for ``SamplingParams.constraint``.

        Args:
            kind: ``json``, ``regex``, ``choice`` or ``grammar``.
            content: the JSON schema, the pattern, the texts, or the grammar in Lark or GBNF.

        Example::

            colour = llm.constraint("choice", ["red", "green"])
            llm.generate("The leaf is ", SamplingParams(constraint=colour))

        Raises:
            RequestError: it cannot be enforced; the reason is told.
        """
        return self._grammars.compile(Form(kind, content, kind)).result()

    def close(self) -> None:
        """End the engine's thread."""
        self.engine.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _serve(
        self, prompts: list[list[int]], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[RequestOutput]:
        if not isinstance(params, Sequence):
            params = [params or SamplingParams(**self.sampling_defaults)] * len(prompts)
        if len(params) != len(prompts):
            expected = f"one for all prompts, or {len(prompts)}"
            raise RequestError("params", found=f"{len(params)}", expected=expected)
        outputs: list[RequestOutput] = []
        open_ones: collections.deque[tuple[RequestOutput, Request]] = collections.deque()
        try:
            for prompt, param in zip(prompts, params):
                output = RequestOutput(prompt, [Completion() for _ in range(param.n)])
                outputs.append(output)
                open_ones.append((output, self._submit(prompt, param, open_ones)))
            while open_ones:
                _collect(*open_ones.popleft())
        finally:
            for _, request in open_ones:  # left by an error: wait until they are gone
                request.cancel()
            for left in open_ones:
                with contextlib.suppress(RequestError):
                    _collect(*left)
        return outputs

    def _submit(
        self,
        prompt: list[int],
        params: SamplingParams,
        open_ones: collections.deque[tuple[RequestOutput, Request]],
    ) -> Request:
        """Put a prompt into the queue; when that is full, wait for the oldest to end."""
        while True:
            try:
                return self.engine.submit(prompt, params)
            except QueueFull:
                if not open_ones:
                    raise
                _collect(*open_ones.popleft())


def _loaded(model: str | Path, precision: Precision | None, layout: Layout | None) -> Pretrained:
    path = hub.local(model)
    if layout is not None:
        _check_divides(path, layout)
    if path.is_dir() and pretrained_vision_language.is_vision_language(path):
        return pretrained_vision_language.load(path, precision=precision, layout=layout)
    return pretrained.load(path, precision=precision, layout=layout)


def _check_divides(path: Path, layout: Layout) -> None:
    """Refuse a mesh before weights are read; the engine looks again."""
    try:
        model = described(path)
    except ModelError:  # adapters, whose base is not known yet, or no model: reading it tells
        return
    check_divides(model, layout)


def _collect(output: RequestOutput, request: Request) -> None:
    """Read all events of a request."""
    for event in request:
        output.completions[event.choice].add(event)
