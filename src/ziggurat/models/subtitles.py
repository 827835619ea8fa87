"""Segments of a transcription as subtitles.

>>> print(srt([(0.0, 1.5, " Hello.")]), end="")
1
00:00:00,000 --> 00:00:01,500
Hello.
>>> print(vtt([(0.0, 1.5, " Hello.")]), end="")
WEBVTT
<BLANKLINE>
00:00:00.000 --> 00:00:01.500
Hello.
"""

from collections.abc import Iterable

Timed = tuple[float, float, str]
"""Start and end in seconds, and a text."""


def srt(segments: Iterable[Timed]) -> str:
    """SubRip's form: numbered, with a comma before milliseconds."""
    parts = [
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{_shown(text)}\n"
        for number, (start, end, text) in enumerate(segments, 1)
    ]
    return "\n".join(parts)


def vtt(segments: Iterable[Timed]) -> str:
    """WebVTT's form (https://www.w3.org/TR/webvtt1)."""
    parts = [
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{_shown(text)}\n"
        for start, end, text in segments
    ]
    return "\n".join(["WEBVTT\n", *parts])


def _shown(text: str) -> str:
    """Text without an arrow, which would be read as times, and without an empty line, which would
    end the subtitle."""
    lines = text.replace("-->", "->").split("\n")
    return "\n".join(line.strip() for line in lines if line.strip())


def _clock(seconds: float, point: str) -> str:
    whole = round(seconds * 1000)
    minutes, milliseconds = divmod(whole, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
