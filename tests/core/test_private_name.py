"""A private name that is gone is reported with what it was for and what to do instead."""

import dataclasses

import pytest

from ziggurat.core.errors import EnvironmentError
from ziggurat.core.private_name import PrivateName

NAME = PrivateName(
    "json",
    "decoder.JSONDecoder",
    "reading notes",
    "json.loads is public; try it",
    distribution="jax",
    file="src/ziggurat/notes.py",
    members=("decode",),
    arguments=("strict",),
)


def test_a_name_that_is_there_is_loaded():
    import json

    assert NAME.load() is json.JSONDecoder
    NAME.check()


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({"module": "json.moved"}, "json.moved.decoder.JSONDecoder"),
        ({"name": "decoder.Renamed"}, "json.decoder.Renamed"),
        ({"members": ("decode", "undo")}, "json.decoder.JSONDecoder.undo"),
        ({"arguments": ("strict", "fast")}, "json.decoder.JSONDecoder(fast=)"),
    ],
    ids=["module", "name", "member", "argument"],
)
def test_one_that_is_gone_says_what_to_do(change, gone):
    with pytest.raises(EnvironmentError) as caught:
        dataclasses.replace(NAME, **change).check()
    text = str(caught.value)
    assert text.startswith(f"{gone}, needed for reading notes: found jax ")
    assert text.endswith("or mend src/ziggurat/notes.py: json.loads is public; try it")
