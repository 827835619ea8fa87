"""OpenAI's request bodies: every field is applied, known to change nothing, or refused by name.

>>> from ziggurat.serve.bodies import read
>>> read(CompletionRequest, b'{"model": "m", "prompt": "Hi", "colour": 1}')
Traceback (most recent call last):
ziggurat.serve.errors.RequestError: colour: found an unknown field; expected a field of this request
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import msgspec

from ziggurat.core.json_types import Json, JsonMapping, JsonObject
from ziggurat.data import HuggingFaceTokenizer, chat
from ziggurat.serve.bodies import MAX_TEXTS, Body
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.sampling import (
    BUILT_IN,
    MAX_LOGPROBS,
    SamplingParameter,
    SamplingParams,
    registered_parameters,
)
from ziggurat.serve.llm.structured import Form, ResponseFormat, StructuredOutputs
from ziggurat.serve.llm.texts import Texts, listed
from ziggurat.serve.llm.tool_parsers import ToolCallParser, parser_for
from ziggurat.serve.llm.tools import Tool, ToolUse, tool_use

NEUTRAL: dict[str, tuple[Json, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": (),
    "functions": ([],),
    "length_penalty": (1,),
    "modalities": (["text"],),
    "moderation": (),
    "prompt_cache_options": ({}, {"mode": "implicit"}),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "suffix": ("",),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields of OpenAI and vLLM that are not applied, each with the values that ask for nothing."""


GUIDED = {f"guided_{kind}": kind for kind in ("json", "regex", "choice", "grammar")}
"""Fields of vLLM before 0.12, each with the kind of ``structured_outputs`` that it asks for."""


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Field ``stream_options`` of a request."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


def _fields(parameters: Mapping[str, SamplingParameter]) -> list[tuple[str, Any, None]]:
    """Fields of a request for these sampling parameters, each of its default's type or null."""
    return [(name, type(one.default) | None, None) for name, one in parameters.items()]


if TYPE_CHECKING:

    class SamplingFields(Body):
        """Fields of the built-in sampling parameters."""

        n: int | None = None

else:
    SamplingFields = msgspec.defstruct(
        "SamplingFields",
        _fields(BUILT_IN),
        bases=(Body,),
        kw_only=True,
        forbid_unknown_fields=True,
        module=__name__,
    )


class GenerationRequest(SamplingFields, kw_only=True):
    """Fields shared by completion and chat requests, besides those of the sampling parameters
    (:data:`ziggurat.serve.llm.sampling.BUILT_IN`)."""

    not_applied: ClassVar[Mapping[str, tuple[Json, ...]]] = NEUTRAL

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    logit_bias: dict[str, float] | None = None
    prompt_logprobs: int | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    return_token_ids: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    cache_salt: str | None = None

    # Labels for the service's operator; they change no answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    # Not applied: see NEUTRAL.
    length_penalty: float | None = None
    service_tier: str | None = None
    spaces_between_special_tokens: bool | None = None
    store: bool | None = None
    use_beam_search: bool | None = None

    def check(self) -> None:
        """Refuse fields that are not applied.

        Raises:
            RequestError: ``param`` names the field.
        """
        super().check()
        if self.cache_salt == "":
            expected = "a text that is not empty"
            raise RequestError("cache_salt", found='""', expected=expected, param="cache_salt")
        if self.prompt_logprobs is not None and self.stream:
            raise RequestError(
                "prompt_logprobs", found="a stream", expected="no stream", param="prompt_logprobs"
            )
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "stream_options", found="no stream", expected="stream: true", param="stream_options"
            )

    def form(
        self, tokenizer: HuggingFaceTokenizer, parser: ToolCallParser | None = None
    ) -> Form | None:
        """Form that the answer must have, if any.

        Args:
            tokenizer: of the model.
            parser: of the model's tool calls; default: the one whose form the template shows.

        Raises:
            RequestError: two are asked for, or one is not well told.
        """
        forms = [] if self.response_format is None else [self.response_format.form()]
        forms += [] if self.structured_outputs is None else [self.structured_outputs.form()]
        for name, kind in GUIDED.items():
            value = getattr(self, name)
            if value is not None:
                forms.append(StructuredOutputs(**{kind: value}).form())
        given = [form for form in forms if form is not None]
        if len(given) > 1:
            raise RequestError(
                "structured_outputs",
                found="response_format too",
                expected="one of them",
                param="structured_outputs",
            )
        return given[0] if given else None

    def _sampling(
        self,
        max_tokens: int | None,
        logprobs: int | None,
        defaults: JsonMapping,
        scored: int | None = None,
    ) -> SamplingParams:
        own = {name: getattr(self, name) for name in BUILT_IN}
        given = {name: defaults.get(name) if own[name] is None else own[name] for name in own}
        extra = {name: getattr(self, name, None) for name in registered_parameters()}
        return SamplingParams(
            max_tokens=max_tokens,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs if scored is None else scored,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            allowed_token_ids=_some(self.allowed_token_ids, "allowed_token_ids"),
            bad_words=tuple(self.bad_words or ()),
            logit_bias=tuple((_token_id(k), v) for k, v in (self.logit_bias or {}).items()),
            extra={name: value for name, value in extra.items() if value is not None},
            **{name: value for name, value in given.items() if value is not None},
        )


G = TypeVar("G", bound=SamplingFields)


def with_registered(kind: type[G]) -> type[G]:
    """A request type with a field for each registered sampling parameter."""
    parameters = registered_parameters()
    if not parameters:
        return kind
    settings: JsonObject = {"kw_only": True, "forbid_unknown_fields": True}
    made: Any = msgspec.defstruct(kind.__name__, _fields(parameters), bases=(kind,), **settings)
    return made


def _some(ids: list[int] | None, field: str) -> tuple[int, ...]:
    """Ids of a list that allows at least one."""
    if ids == []:
        raise RequestError(field, found="[]", expected="at least one id, or null", param=field)
    return tuple(ids or ())


def _token_id(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text):
        raise RequestError("logit_bias", found=repr(text), expected="token ids", param="logit_bias")
    return int(text)


class CompletionRequest(GenerationRequest, kw_only=True):
    """Body of ``POST /v1/completions``."""

    token_ids: ClassVar[str] = "prompt"

    prompt: str | list[Json]
    add_special_tokens: bool | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None
    best_of: int | None = None

    @property
    def prompt_alone(self) -> bool:
        """Whether the answer is the prompt, with nothing behind it."""
        return bool(self.echo) and self.max_tokens == 0

    def asking_nothing(self, name: str) -> tuple[Json, ...]:
        """See :class:`~ziggurat.serve.bodies.Body`; the best of as many as are shown are these."""
        accepted = super().asking_nothing(name)
        return (*accepted, self.n) if name == "best_of" and self.n else accepted

    def prompts(self) -> Texts:
        """The prompts, one or several.

        Raises:
            RequestError: they are none, or more than a request may have.
        """
        made = listed(self.prompt, "prompt")
        if len(made) > MAX_TEXTS:
            found, expected = f"{len(made)} prompts", f"at most {MAX_TEXTS}"
            raise RequestError("prompt", found=found, expected=expected, param="prompt")
        return made

    def sampling(self, defaults: JsonMapping | None = None) -> SamplingParams:
        """Sampling parameters; as with OpenAI, 16 tokens unless the request says more.

        Args:
            defaults: sampling parameters for fields that the request leaves out.
        """
        most = 16 if self.max_tokens is None else self.max_tokens
        scored = None
        if self.echo and self.logprobs is not None:
            scored = max(self.logprobs, self.prompt_logprobs or 0)
        # A token is generated all the same where the prompt alone is asked for, and not shown.
        most = 1 if self.prompt_alone else most
        return self._sampling(most, self.logprobs, defaults or {}, scored)


class ChatRequest(GenerationRequest, kw_only=True):
    """Body of ``POST /v1/chat/completions``."""

    messages: list[Json]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: JsonObject | None = None
    reasoning_effort: str | None = None

    # A guess at the answer, by which a server may save time; it changes no answer.
    prediction: JsonObject | None = None

    # Not applied: see NEUTRAL.
    audio: JsonObject | None = None
    function_call: Json = None
    functions: list[Json] | None = None
    modalities: list[str] | None = None
    moderation: Json = None
    prompt_cache_options: JsonObject | None = None
    verbosity: str | None = None
    web_search_options: JsonObject | None = None

    def check(self) -> None:
        """Refuse fields that are not applied or contradict each other."""
        super().check()
        if self.continue_final_message and self.add_generation_prompt:
            raise RequestError(
                "continue_final_message",
                found="add_generation_prompt too",
                expected="one of them",
                param="continue_final_message",
            )

    def tool_use(self) -> ToolUse | None:
        """The tools that may be called.

        Raises:
            RequestError: the fields on tools contradict each other, or one is not well described.
        """
        return tool_use(self.tools, self.tool_choice, self.parallel_tool_calls)

    def form(
        self, tokenizer: HuggingFaceTokenizer, parser: ToolCallParser | None = None
    ) -> Form | None:
        """Form that the answer must have, by ``response_format`` and by its tools.

        Args:
            tokenizer: of the model.
            parser: of the model's tool calls; default: the one whose form the template shows.

        Raises:
            RequestError: these cannot be had together.
        """
        form, use = super().form(tokenizer), self.tool_use()
        parser = parser or parser_for(tokenizer)
        if use is None or parser is None or (form is None and not use.constrained):
            return form
        if form is not None and (use.forced or form.kind != "json"):
            raise RequestError(
                form.field,
                found="tools whose call is forced" if use.forced else f"tools and {form.kind}",
                expected="tool_choice auto or none, and a JSON form",
                param=form.field,
            )
        try:
            return parser.grammar(use, tokenizer, form)
        except (ValueError, RecursionError) as error:
            expected = "JSON schemas that can be enforced"
            raise RequestError("tools", found=error, expected=expected, param="tools") from None

    def template_variables(
        self, tokenizer: HuggingFaceTokenizer, *, ignore: bool = False
    ) -> JsonObject:
        """Variables of the chat template.

        Args:
            tokenizer: with the template.
            ignore: leave ``reasoning_effort`` out where the template does not know it.

        Raises:
            RequestError: the template knows no ``reasoning_effort``, or it cannot be read.
        """
        given = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is None:
            return given
        name = "reasoning_effort"
        template = tokenizer.chat_template
        if template is not None and name in chat.variables(template):
            return {name: self.reasoning_effort, **given}
        if ignore:
            return given
        raise RequestError(
            name,
            found=repr(self.reasoning_effort),
            expected="no such field: the model's chat template knows none",
            fix="this server does not apply it",
            param=name,
        )

    def sampling(self, defaults: JsonMapping | None = None) -> SamplingParams:
        """Sampling parameters; without a limit the answer may fill the context.

        Args:
            defaults: sampling parameters for fields that the request leaves out.
        """
        limits = {x for x in (self.max_tokens, self.max_completion_tokens) if x is not None}
        if len(limits) > 1:
            raise RequestError(
                "max_tokens",
                found=f"{self.max_tokens}, and max_completion_tokens {self.max_completion_tokens}",
                expected="one of them",
                param="max_tokens",
            )
        top = self.top_logprobs
        if top and not self.logprobs:
            raise RequestError(
                "top_logprobs", found="no logprobs", expected="logprobs: true", param="top_logprobs"
            )
        if top is not None and not 0 <= top <= MAX_LOGPROBS:
            expected = f"a number from 0 to {MAX_LOGPROBS}"
            raise RequestError("top_logprobs", found=top, expected=expected, param="top_logprobs")
        shown = (top or 0) if self.logprobs else None
        return self._sampling(next(iter(limits), None), shown, defaults or {})
