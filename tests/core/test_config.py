"""Typed config: every error at once, did-you-mean, provenance, round trip."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Discriminator

from ziggurat.core import config
from ziggurat.core.errors import ConfigError


@config.node
class Adam:
    kind: Literal["adam"] = "adam"
    lr: float = 1e-3

    def __post_init__(self):
        config.require(self.lr > 0, "lr", self.lr, "a positive number")


@config.node
class Sgd:
    kind: Literal["sgd"] = "sgd"
    lr: float
    nesterov: bool = False


@config.node
class Source:
    path: Path
    weight: float = 1.0


@config.node
class Run:
    steps: int
    optimizer: Annotated[Adam | Sgd, Discriminator("kind")] = dataclasses.field(
        default_factory=Adam
    )
    sources: tuple[Source, ...] = ()
    note: str | None = None


GOOD = """
steps = 5
[optimizer]
kind = "sgd"
lr = 1
[[sources]]
path = "a.txt"
"""


def test_values_and_provenance():
    run = config.parse(Run, GOOD, ["optimizer.nesterov=true", "sources.0.weight=2.5", "note=hello"])
    assert run.value == Run(
        steps=5,
        optimizer=Sgd(lr=1.0, nesterov=True),
        sources=(Source(path=Path("a.txt"), weight=2.5),),
        note="hello",
    )
    assert run.provenance["optimizer.lr"] == "<text>"
    assert run.provenance["optimizer.nesterov"] == "command line"
    rows = {key: (value, source) for key, value, source in run.table()}
    assert rows["sources.0.weight"] == ("2.5", "command line")
    assert rows["steps"] == ("5", "<text>")


def test_override_switches_a_variant():
    run = config.parse(Run, "steps = 1", ["optimizer={kind='sgd', lr=0.5}"])
    assert run.value.optimizer == Sgd(lr=0.5)


def test_all_errors_at_once_with_paths_and_hints():
    text = (
        GOOD.replace("steps = 5", "stepz = 5").replace('path = "a.txt"', "pathh = 3")
        + "weight = 'x'"
    )
    with pytest.raises(ConfigError) as caught:
        config.parse(Run, text, ["optimizer.nestero=true"])
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "steps: missing",
        "stepz: unknown key, did you mean steps?",
        "optimizer.nestero: unknown key, did you mean nesterov?",
        "sources.0.path: missing",
        "sources.0.pathh: unknown key, did you mean path?",
        "sources.0.weight: found 'x', expected a valid number",
    ):
        assert part in message, message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("steps = 'x'", "steps: found 'x', expected a valid integer"),
        ("steps = 1.5", "steps: found 1.5, expected a valid integer"),
        ("steps = true", "steps: found True, expected a valid integer"),
        (
            "steps = 1\n[optimizer]\nkind='adm'",
            "optimizer.kind: found 'adm', expected one of adam, sgd, did you mean adam?",
        ),
        ("steps = 1\n[optimizer]\nlr=1.0", "optimizer: missing key kind"),
        (
            "steps = 1\n[optimizer]\nkind='adam'\nlr=-1.0",
            "optimizer.lr: found -1.0, expected a positive number",
        ),
        ("steps = ", "expected valid TOML"),
    ],
)
def test_each_error_is_one_line(text, part):
    with pytest.raises(ConfigError) as caught:
        config.parse(Run, text)
    assert part in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_bad_override(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        config.load(Run, tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        config.parse(Run, GOOD, ["steps"])
    with pytest.raises(ConfigError, match="index '7'"):
        config.parse(Run, GOOD, ["sources.7.weight=1"])
    with pytest.raises(ConfigError, match="steps is a value"):
        config.parse(Run, GOOD, ["steps.x.y=1"])


def test_toml_round_trip():
    run = config.parse(Run, GOOD).value
    assert config.parse(Run, config.to_toml(run)).value == run
