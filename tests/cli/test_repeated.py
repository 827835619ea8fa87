"""Every list option of every command takes its values in one go, one by one, or mixed."""

import importlib
import inspect
import pkgutil

import pytest

import ziggurat.cli
from ziggurat.cli import console, repeated

COMMANDS = {}
for module in pkgutil.iter_modules(ziggurat.cli.__path__):
    held = importlib.import_module(f"ziggurat.cli.{module.name}")
    for name, function in inspect.getmembers(held, inspect.isfunction):
        if function.__module__ == held.__name__ and name.isidentifier() and name[0] != "_":
            COMMANDS[f"{module.name}.{name}"] = function

LISTS = [
    (command, flag)
    for command, function in COMMANDS.items()
    if "Args:" in (function.__doc__ or "") and function.__name__ != "main"
    for flag, name in repeated.list_options(function).items()
    if name != "overrides" and inspect.signature(function).parameters[name].default == ()
]
"""Options that are empty unless given, which all of them are but ``--platforms``."""


def given(function, args):
    """What a command line hands to a command's function."""
    seen = {}

    def note(*given, **named):
        seen.update(inspect.signature(function).bind(*given, **named).arguments)
        return 0

    note.__signature__ = inspect.signature(function)
    note.__doc__, note.__annotations__ = function.__doc__, function.__annotations__
    note.__wrapped__ = function
    console.run(note, args, "ziggurat test", "example")
    return seen


def test_the_sweep_sees_the_list_options_there_are():
    known = {
        *(("serve.serve", "--api-key"), ("generate.generate", "--stop")),
        *(
            ("sample.sample", "--class"),
            ("eval.evaluate", "--text"),
            ("quantize.quantize", "--text"),
        ),
    }
    assert known <= set(LISTS)
    assert len(LISTS) >= 10


@pytest.mark.parametrize(("command", "flag"), LISTS)
def test_all_values_of_a_repeated_option_arrive(command, flag):
    function = COMMANDS[command]
    name = repeated.list_options(function)[flag]
    required = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    positional = [
        "weights" if p.name == "kind" else "x" for p in required if p.kind is p.POSITIONAL_ONLY
    ]
    options = [f"--{p.name}=x" for p in required if p.kind is not p.POSITIONAL_ONLY]
    for args in (
        [flag, "a", flag, "b", flag, "c"],
        [flag, "a", "b", flag, "c"],
        [f"{flag}=a", f"{flag}=b", flag, "c"],
        [flag, "a", "b", "c"],
    ):
        found = given(function, [*positional, *options, *args])
        assert [str(value) for value in found[name]] == ["a", "b", "c"], args


def command(
    run: str, /, key: tuple[str, ...] = (), few: tuple[int, ...] = (1, 2), flag: bool = False
):
    """Do.

    Args:
        run: a run.
        key: keys.
        few: numbers.
        flag: a flag.
    """


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--key", "a", "--flag", "--key", "b", "m"], {"key": ("a", "b"), "flag": True}),
        (["m", "--key=-a", "--key=--b", "--key", "c"], {"key": ("-a", "--b", "c")}),
        (["m", "--few", "3", "--few=-4"], {"few": (3, -4)}),
        (["m", "--few", "3"], {"few": (3,)}),
        (["m"], {"few": (1, 2), "key": ()}),
        (["--key=a=b", "--key=", "m"], {"key": ("a=b", "")}),
        (["--key", "a", "--key", "b", "--", "m"], {"key": ("a", "b"), "run": "m"}),
    ],
)
def test_positions_defaults_and_hyphens(args, expected):
    found = given(command, args)
    assert {name: found.get(name) for name in expected} == expected
    assert found["run"] == "m"
