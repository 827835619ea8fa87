"""The part of ``ziggurat serve`` that turns speech into text."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def is_speech(model: str) -> bool:
    """Whether what is to be served is a model of speech."""
    from ziggurat.models.loading import pretrained_speech

    return Path(model).is_dir() and pretrained_speech.is_speech(Path(model))


def opened(path: str, name: str, precision: Any) -> Any:
    """The model of speech at ``path`` as a part of the server.

    Args:
        path: a Hugging Face directory, or a checkpoint of one.
        name: what requests call it; empty: its directory's name.
        precision: parameter and compute types.
    """
    from ziggurat.models import Transcriber
    from ziggurat.serve.composition import Recognizer

    transcriber = Transcriber.load(path, precision=precision)
    return Recognizer(name or transcriber.speech.name, transcriber)


def warm_up(recognizer: Any, say: Callable[[str], None]) -> None:
    """Compile a model's programs, if there is one, and tell how long it took."""
    if recognizer is None:
        return
    steps, begun = recognizer.speech.speech.log_mel.config, time.monotonic()
    say(f"{recognizer.name}: transcribes in windows of {steps.seconds} s, compiling")
    recognizer.speech.warm_up()
    say(f"compiled its programs in {time.monotonic() - begun:.1f} s")
