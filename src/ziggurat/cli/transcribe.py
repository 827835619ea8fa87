"""``ziggurat transcribe``: write what is said in an audio, on standard output."""

import sys
from pathlib import Path
from typing import Literal

from ziggurat.cli import console


def main(args: list[str]) -> int:
    """Run ``ziggurat transcribe``."""
    example = (
        "ziggurat transcribe models/whisper talk.wav --language en\n"
        "  ziggurat transcribe models/whisper talk.wav --format srt > talk.srt"
    )
    return console.run(transcribe, args, "ziggurat transcribe", example)


def transcribe(
    model: str,
    audio: Path,
    /,
    language: str | None = None,
    task: Literal["transcribe", "translate"] | None = None,
    format: Literal["text", "srt", "vtt", "json"] = "text",
    prompt: str | None = None,
    compute: Literal["float32", "bfloat16"] = "float32",
) -> int:
    """Write what is said in a WAV file with a model of speech such as Whisper.

    Args:
        model: a Hugging Face directory or id, or a checkpoint that ziggurat import made of one.
        audio: a WAV file.
        language: language spoken, such as en; default: it is detected.
        task: transcribe, or translate into English.
        format: text, subtitles (srt, vtt), or json with segments.
        prompt: text that stands before the audio's, for names and style.
        compute: type of weights and matmuls.
    """
    import dataclasses
    import json

    from ziggurat.api.models import transcribe as transcribed
    from ziggurat.models import subtitles

    found = transcribed(
        model,
        audio,
        language=language,
        task=task,
        timestamps=format != "text",
        prompt=prompt,
        compute=compute,
    )
    timed = [(s.start, s.end, s.text) for s in found.segments]
    if format == "json":
        shown = json.dumps(dataclasses.asdict(found), ensure_ascii=False, indent=2) + "\n"
    elif format == "text":
        shown = found.text + "\n"
    else:
        shown = subtitles.srt(timed) if format == "srt" else subtitles.vtt(timed)
    sys.stdout.write(shown)
    return 0
