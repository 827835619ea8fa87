"""Segments as subtitles."""

from ziggurat.models import subtitles

SEGMENTS = [(0.0, 1.5, " One --> two"), (3599.9996, 3661.25, " Three\n\nfour ")]


def test_srt():
    assert subtitles.srt(SEGMENTS) == (
        "1\n00:00:00,000 --> 00:00:01,500\nOne -> two\n"
        "\n2\n01:00:00,000 --> 01:01:01,250\nThree\nfour\n"
    )
    assert subtitles.srt([]) == ""


def test_vtt():
    assert subtitles.vtt(SEGMENTS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nOne -> two\n"
        "\n01:00:00.000 --> 01:01:01.250\nThree\nfour\n"
    )
    assert subtitles.vtt([]) == "WEBVTT\n"
