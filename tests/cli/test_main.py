"""The command: commands found lazily, errors as one line, exit codes, overrides, logging."""

import logging
import signal
import subprocess
import sys
import types

import pytest

from ziggurat.cli import console, main
from ziggurat.core.errors import ConfigError


@pytest.fixture
def command(monkeypatch):
    """Put a command ``import`` (a keyword, so the module gets an underscore) in place."""

    def install(function):
        module = types.SimpleNamespace(main=function)
        monkeypatch.setitem(main.COMMANDS, "import", "a command of this test")
        monkeypatch.setitem(sys.modules, "ziggurat.cli.import_", module)

    return install


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_verb_has_a_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: ziggurat {name}" in text
    assert f"\nexample:\n  ziggurat {name}" in text


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"], ["help"], ["--verbose", "--help"]])
def test_help_lists_the_verbs(args, capsys):
    assert main.main(args) == 0
    text = capsys.readouterr().out
    assert "\nexamples:\n  ziggurat " in text
    for name, summary in main.COMMANDS.items():
        assert f"  {name}" in text
        assert summary in text


def test_version(capsys):
    from ziggurat import __version__

    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ziggurat {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("docter", "did you mean doctor?"), ("doc", "did you mean doctor?"), ("zzz", "see ziggurat")],
)
def test_unknown_verb(typed, hint, capsys):
    assert main.main([typed]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: command: found '{typed}'; expected one of ")
    assert hint in shown.err


def test_a_verb_gets_its_args_and_gives_its_exit_code(command):
    seen = []
    command(lambda args: seen.append(args) or 7)
    assert main.main(["--verbose", "import", "hf", "--json", "--debug", "--", "--debug"]) == 7
    assert seen == [["hf", "--json", "--", "--debug"]]


def test_a_user_error_is_one_unwrapped_line_and_exit_2(command, capsys):
    long = "[bold]lr[/bold] " + "x" * 300

    def fail(args):
        raise ConfigError(long, found="-1", expected="a positive number", fix="set lr > 0")

    command(fail)
    assert main.main(["import"]) == 2
    expected = f"error: {long}: found -1; expected a positive number; set lr > 0\n"
    assert capsys.readouterr().err == expected
    with pytest.raises(ConfigError):
        main.main(["import", "--debug"])


def test_interrupt_is_130_and_a_defect_keeps_its_traceback(command):
    def interrupt(args):
        raise KeyboardInterrupt

    command(interrupt)
    assert main.main(["import"]) == 130

    def defect(args):
        raise RuntimeError("ours")

    command(defect)
    with pytest.raises(RuntimeError, match="ours"):
        main.main(["import"])


def test_a_reader_that_goes_away_is_no_error():
    code = """
import sys
from ziggurat.cli import doctor, main
doctor.main = lambda args: [print("x" * 99, flush=True) for _ in range(10**5)]
sys.exit(main.main(["doctor"]))
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def example(path: str, /, steps: int = 1, dry_run: bool = False, overrides: tuple[str, ...] = ()):
    """Do a thing.

    Args:
        path: where the thing is.
        steps: how often.
        dry_run: do nothing.
    """
    print(path, steps, dry_run, overrides)
    return steps


def run(*args: str) -> int:
    return console.run(example, args, "ziggurat example", "ziggurat example a.toml")


def test_options_come_from_the_signature(capsys):
    assert run("a.toml", "--steps", "3", "--dry-run") == 3
    assert capsys.readouterr().out == "a.toml 3 True ()\n"


def test_help_of_a_verb_ends_with_its_example(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "usage: ziggurat example" in text
    assert "where the thing is." in text
    assert "--overrides" not in text
    assert text.endswith("example:\n  ziggurat example a.toml\n")


@pytest.mark.parametrize(
    ("args", "overrides"),
    [
        (["--train.steps=100"], ("train.steps=100",)),
        (["--set", "seed=3"], ("seed=3",)),
        (["--set=optimizer={kind='sgd', lr=1}"], ("optimizer={kind='sgd', lr=1}",)),
        (["--data.sources.0.read-ahead=2"], ("data.sources.0.read_ahead=2",)),
        (["--train.note=a=b"], ("train.note=a=b",)),
    ],
)
def test_overrides_reach_the_function(args, overrides, capsys):
    assert run(*args, "a.toml") == 1
    assert capsys.readouterr().out == f"a.toml 1 False {overrides}\n"


@pytest.mark.parametrize(
    "args", [["--train.steps", "100"], ["--set", "seed"], ["--set"], ["--set", "=3"]]
)
def test_an_override_without_key_or_value_is_refused(args):
    with pytest.raises(ConfigError, match="expected --KEY=VALUE"):
        run("a.toml", *args)


def test_overrides_are_no_options_of_a_verb_without_a_run_file():
    def plain(json: bool = False) -> int:
        return 0

    with pytest.raises(ConfigError, match=r"found an option --train.steps; expected one of --json"):
        console.run(plain, ["--train.steps=1"], "ziggurat plain", "")


@pytest.mark.parametrize("given", ["--dryrun", "--dry_runn", "--dryrun=true"])
def test_an_option_misspelt_is_suggested(given):
    with pytest.raises(ConfigError, match=r"did you mean --dry-run\?"):
        run("a.toml", given)


@pytest.mark.parametrize("verbose", [False, True])
def test_log_levels(verbose, capsys):
    console.set_up_logging(verbose)
    for name in ("ziggurat.train", "jax"):
        for level in ("debug", "info", "warning"):
            getattr(logging.getLogger(name), level)(level)
    shown = [line.split()[2:] for line in capsys.readouterr().err.splitlines()]
    always = [
        ["INFO", "ziggurat.train:", "info"],
        ["WARNING", "ziggurat.train:", "warning"],
        ["WARNING", "jax:", "warning"],
    ]
    extra = [["DEBUG", "ziggurat.train:", "debug"], ["INFO", "jax:", "info"]]
    assert sorted(shown) == sorted(always + (extra if verbose else []))


WORKING = """
import pathlib, sys, time, types
from ziggurat.cli import main
from ziggurat.core import atomic

def work(args):
    with atomic.new_directory(pathlib.Path(args[0])):
        print("ready", flush=True)
        time.sleep(60)

sys.modules["ziggurat.cli.import_"] = types.SimpleNamespace(main=work)
sys.argv = ["ziggurat", "import", sys.argv[1]]
sys.exit(main.main())
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_removes_what_is_half_done(number, code, tmp_path):
    command = [sys.executable, "-c", WORKING, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        assert process.wait(timeout=60) == code
    assert not list(tmp_path.iterdir())
