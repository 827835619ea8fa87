"""``ziggurat generate``: continue a text, or answer it, on standard output."""

import sys
from typing import Literal

from ziggurat.cli import console


def main(args: list[str]) -> int:
    """Run ``ziggurat generate``."""
    example = (
        'ziggurat generate runs/tiny-python --prompt "def add(a, b):" --max-tokens 64\n'
        "  echo 'Why is the sky blue?' | ziggurat generate MODEL.gguf --chat --temperature 0"
    )
    return console.run(generate, args, "ziggurat generate", example)


def generate(
    model: str,
    /,
    prompt: str = "-",
    chat: bool = False,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int | None = None,
    stop: tuple[str, ...] = (),
    max_sequence_length: int | None = None,
    compute: Literal["float32", "bfloat16"] = "float32",
) -> int:
    """Continue a text with a model; the output streams to standard output.

    Args:
        model: a run, a checkpoint step, a Hugging Face directory or a GGUF file.
        prompt: text to continue; "-" reads standard input.
        chat: treat the prompt as a user's message and answer it.
        max_tokens: most tokens to generate.
        temperature: 0 takes the most likely token always.
        top_p: keep the most likely tokens up to this probability.
        top_k: keep this many most likely tokens; 0: all.
        min_p: keep tokens at least this fraction as likely as the most likely one.
        seed: the same seed gives the same text; default a fresh one.
        stop: texts that end the generation.
        max_sequence_length: context in tokens; default the model's, at most 8192.
        compute: type of weights and products.
    """
    from ziggurat.core import config
    from ziggurat.nn.precision import Precision
    from ziggurat.serve.llm import LLM, EngineConfig, SamplingParams
    from ziggurat.serve.llm.render import render_chat

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        stop=stop,
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    limits = {"max_sequence_length": max_sequence_length, "max_running": 1}
    settings = config.from_plain(EngineConfig, limits, "command line")
    with LLM(model, settings, precision=Precision(compute, compute)) as llm:
        if chat:
            ids = render_chat(llm.tokenizer, [{"role": "user", "content": text.strip()}])
        else:
            ids = llm.tokenizer.encode(text, add_special_tokens=True)
        for event in llm.engine.generate(ids, params):
            sys.stdout.write(event.text)
            sys.stdout.flush()
    sys.stdout.write("\n")
    return 0
