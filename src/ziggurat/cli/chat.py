"""``ziggurat chat``: talk to a model in the terminal."""

import contextlib
import sys
from typing import TYPE_CHECKING, Literal

from ziggurat.cli import console

if TYPE_CHECKING:
    from ziggurat.serve.llm import LLM, SamplingParams

HELP = "/reset forgets the conversation, /exit ends, Ctrl-C stops an answer"


def main(args: list[str]) -> int:
    """Run ``ziggurat chat``."""
    example = 'ziggurat chat MODEL.gguf --system "You are brief." --temperature 0.7'
    return console.run(chat, args, "ziggurat chat", example)


def chat(
    model: str,
    /,
    system: str = "",
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    generation_config: Literal["model", "none"] = "model",
    seed: int | None = None,
    max_sequence_length: int | None = None,
    compute: Literal["float32", "bfloat16"] = "float32",
) -> int:
    """Talk to a model: one line, one answer, until /exit or the end of input.

    /reset forgets the conversation but not the system prompt. Works with a pipe as input too.

    Args:
        model: a run, a checkpoint step, a Hugging Face directory or a GGUF file.
        system: system prompt; default none.
        max_tokens: most tokens of an answer; default what the context holds.
        temperature: 0 takes the most likely token always; default the model's, or 0.7.
        top_p: keep the most likely tokens up to this probability; default the model's, or 0.95.
        generation_config: take the model's from its generation_config.json, top_k, min_p and
            repetition_penalty too.
        seed: the same seed and lines give the same answers; default a fresh one.
        max_sequence_length: context in tokens; default the model's, at most 8192.
        compute: type of weights and matmuls.
    """
    from ziggurat.core import config
    from ziggurat.nn.precision import Precision
    from ziggurat.serve.llm import LLM, EngineConfig, SamplingParams

    asked = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
    given = {key: value for key, value in asked.items() if value is not None}
    SamplingParams(**given)  # told before the model is read
    opening = [{"role": "system", "content": system}] if system else []
    limits = {"max_sequence_length": max_sequence_length, "max_running": 1}
    settings = config.from_plain(EngineConfig, limits, "command line")
    with LLM(model, settings, precision=Precision(compute, compute)) as llm:
        told = llm.sampling_defaults if generation_config == "model" else {}
        params = SamplingParams(**{"temperature": 0.7, "top_p": 0.95, **told, **given})
        if sys.stdin.isatty():
            console.output().print(f"{llm.name}. {HELP}", markup=False, style="dim")
        _converse(llm, params, opening)
    return 0


def _converse(llm: "LLM", params: "SamplingParams", opening: list[dict[str, str]]) -> None:
    from ziggurat.core.errors import ServeError

    history = list(opening)
    while (line := _read_line()) is not None:
        text = line.strip()
        if text == "/exit":
            return
        if text == "/reset":
            history = list(opening)
        elif text.startswith("/") and " " not in text:
            console.print_error(f"command: found {text}; expected /reset or /exit")
        elif text:
            said = [*history, {"role": "user", "content": text}]
            try:
                answer = _answer(llm, params, said)
            except ServeError as error:  # e.g. the conversation outgrew the context
                if not sys.stdin.isatty():
                    raise
                console.print_error(f"{error}; /reset starts anew")
                continue
            history = [*said, {"role": "assistant", "content": answer}]


def _answer(llm: "LLM", params: "SamplingParams", messages: list[dict[str, str]]) -> str:
    """Stream one answer to standard output and return it; Ctrl-C ends it early."""
    from ziggurat.serve.llm.render import render_chat

    parts: list[str] = []
    try:
        for event in llm.engine.generate(render_chat(llm.tokenizer, messages), params):
            parts.append(event.text)
            sys.stdout.write(event.text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    sys.stdout.write("\n")
    sys.stdout.flush()
    return "".join(parts)


def _read_line() -> str | None:
    """The next line; ``None`` at the end of input."""
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for input())
    try:
        return input("> ")
    except EOFError:
        sys.stdout.write("\n")
        return None
