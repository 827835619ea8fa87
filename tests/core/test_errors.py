"""Errors: one line in one form, and whole after a journey between processes."""

import inspect
import pickle

import pytest

from ziggurat.core import errors
from ziggurat.core.errors import ConfigError, ZigguratError, did_you_mean

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, ZigguratError)
]


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, "lr"),
        ({"found": -1}, "lr: found -1"),
        ({"found": 0, "expected": "more"}, "lr: found 0; expected more"),
        ({"expected": "a number", "fix": "set it"}, "lr: expected a number; set it"),
        ({"found": "x", "expected": 1, "fix": "do"}, "lr: found x; expected 1; do"),
    ],
)
def test_text(parts, text):
    assert str(ConfigError("lr", **parts)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_survives_pickling(kind):
    error = kind("mesh", found="3", expected="4", fix="add one")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error) == "mesh: found 3; expected 4; add one"
    assert (again.what, again.found, again.expected, again.fix) == ("mesh", "3", "4", "add one")


def test_kinds_are_told_apart():
    assert len(KINDS) >= 9
    for kind in KINDS:
        others = set(KINDS) - {kind, ZigguratError}
        assert kind is ZigguratError or not issubclass(kind, tuple(others))


@pytest.mark.parametrize(
    ("name", "hint"),
    [("stesp", "did you mean steps?"), ("steps", "did you mean steps?"), ("zzz", ""), ("", "")],
)
def test_did_you_mean(name, hint):
    assert did_you_mean(name, ["steps", "seed"]) == hint
    assert did_you_mean(name, []) == ""
