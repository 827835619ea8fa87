"""``ziggurat generate``: continue a text, or answer it, on standard output."""

import sys
from pathlib import Path
from typing import Literal

from ziggurat.cli import console


def main(args: list[str]) -> int:
    """Run ``ziggurat generate``."""
    example = (
        'ziggurat generate runs/tiny-python --prompt "def add(a, b):" --max-tokens 64\n'
        "  echo 'Why is the sky blue?' | ziggurat generate MODEL.gguf --chat --temperature 0\n"
        "  ziggurat generate MODEL --chat --image before.png --image after.png"
        ' --prompt "What has changed?"'
    )
    return console.run(generate, args, "ziggurat generate", example)


def generate(
    model: str,
    /,
    prompt: str = "-",
    chat: bool = False,
    image: tuple[str, ...] = (),
    max_tokens: int = 256,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    generation_config: Literal["model", "none"] = "model",
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
        image: file of a picture, for a model that reads images; give the option once for each. With
            --chat pictures stand before the message, otherwise the prompt holds the model's image
            token once for each.
        max_tokens: most tokens to generate.
        temperature: 0 takes the most likely token always; default the model's, or 1.
        top_p: keep the most likely tokens up to this probability; default the model's, or 1.
        top_k: keep this many most likely tokens; 0: all. Default the model's, or all.
        min_p: keep tokens at least this fraction as likely as the most likely one; default the
            model's, or 0.
        generation_config: take the model's from its generation_config.json, repetition_penalty
            too.
        seed: the same seed gives the same text; default a fresh one.
        stop: texts that end the generation.
        max_sequence_length: context in tokens; default the model's, at most 8192.
        compute: type of weights and matmuls.
    """
    from ziggurat.api.models import stream
    from ziggurat.serve.llm import SamplingParams

    asked = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    asked |= {"max_tokens": max_tokens, "seed": seed, "stop": stop}
    given = {key: value for key, value in asked.items() if value is not None}
    SamplingParams(**given)  # told before standard input is read
    pieces = stream(
        model,
        sys.stdin.read() if prompt == "-" else prompt,
        sampling=given,
        chat=chat,
        images=[Path(file) for file in image],
        recommended=generation_config == "model",
        max_sequence_length=max_sequence_length,
        compute=compute,
    )
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0
