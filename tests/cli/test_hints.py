"""What a stranger sees: help of every command, hints for keys of other programs, wrong files."""

import re

import pytest
from tests.train.runs import TEXT

from ziggurat.cli import console, main, options
from ziggurat.core import config
from ziggurat.core.errors import ConfigError
from ziggurat.core.storage import CLIENTS
from ziggurat.data.sources.files import list_files
from ziggurat.data.sources.nodes import TextFiles
from ziggurat.models.loading import pretrained
from ziggurat.train.config import SYNONYMS, RunConfig

SUBCOMMANDS = {
    "cluster": ("run", "resize", "status"),
    "data": ("prepare", "stats", "sample", "decode", "trace"),
    "kernels": ("list", "bench", "tune", "build"),
    "models": ("list", "show"),
    "bundle": ("encoder", "export", "images", "inspect", "verify"),
    "checkpoints": ("verify", "repair", "diff", "export"),
}
PAGES = [[name] for name in main.COMMANDS]
PAGES += [[name, sub] for name, subs in SUBCOMMANDS.items() for sub in subs]


def help_of(args, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main.main([*args, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("args", PAGES, ids=" ".join)
def test_help_is_written_for_its_reader(args, capsys, monkeypatch):
    """Arguments have names, every argument and option a text, every page an example; no line is
    broken in the middle of a sentence, and no default is called None."""
    monkeypatch.setenv("COLUMNS", "80")
    page = help_of(args, capsys)
    usage = page.splitlines()[0]
    assert usage.startswith(f"usage: ziggurat {' '.join(args)}")
    assert "example:\n  ziggurat " in page
    above = page.partition("\nexample:\n")[0]
    assert not re.search(r"\b(STR|VERB|verbs?)\b|\{None\}|default: (None|'')?\)", above), page
    for line in above.splitlines()[1:]:
        assert len(line) <= 100 or "usage" in line, line
    assert not re.search(r"^ +--[a-z][\w-]*(?: [A-Z]+)? *\n +--", above, re.MULTILINE), page


def test_switches_that_are_on_say_what_off_does(capsys):
    page = " ".join(help_of(["serve"], capsys).split())
    assert "--no-prefix-cache do not keep blocks of ended requests" in page


@pytest.mark.parametrize("args", [page for page in PAGES if page[0] not in SUBCOMMANDS or page[1:]],
                         ids=" ".join)  # fmt: skip
def test_an_unknown_option_is_one_line(args, capsys):
    if args == ["checkpoints"]:
        return
    kind = ["hf"] if args[0] in ("import", "export") else []
    assert main.main([*args, *kind, "x", "--no-such-option"]) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: "), line
    assert "\n" not in line
    assert "--no-such-option" in line


def test_an_option_misspelt_is_suggested():
    def command(model: str, /, max_tokens: int = 1, cache: bool = True) -> None: ...

    assert options.flags_of(command) == {"--help", "--max-tokens", "--no-cache"}
    with pytest.raises(ConfigError, match=r"an option --max-token; .*did you mean --max-tokens\?"):
        console.run(command, ["m", "--max-token=3"], "ziggurat x", "")


@pytest.mark.parametrize("key", [*SYNONYMS, "batch_size", "steps", "warmup_steps", "weight_decay"])
def test_keys_of_other_programs_are_translated(key):
    """Also where they stand in a table of the run file, and on the command line without a dot."""
    known = set(config.keys_of(RunConfig))
    for place in (key, f"train.{key}"):
        if place in known:
            continue
        with pytest.raises(ConfigError) as caught:
            config.parse(RunConfig, TEXT, [f"{place}=1"])
        found = re.search(
            rf"{re.escape(place)}: unknown key, did you mean (.*?)\?", str(caught.value)
        )
        assert found, str(caught.value)
        meant = re.split(r" or | and ", found[1])
        assert set(meant) <= known, meant


def test_top_level_keys_need_no_set(tmp_path, capsys):
    file = tmp_path / "tiny.toml"
    file.write_text(TEXT)
    assert console.split_overrides(["--name=x", "--adapter={rank=2}"], {"--dry-run"}) == (
        [],
        ["name=x", "adapter={rank=2}"],
    )
    assert main.main(["train", str(file), "--name=a/b", "--learning_rate=1e-3"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "name: found 'a/b'" in line or "learning_rate: unknown key" in line
    assert "did you mean optimizer.lr?" in line
    assert main.main(["train", str(file), "--learning_rate", "1e-3"]) == 2
    assert "--KEY=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("run.toml", ["found a run file", "ziggurat train"]),
        ("model.safetensors", ["found weights alone", "config.json"]),
        ("config.json", ["a JSON file", "give its directory"]),
        ("model.bin", ["not GGUF", "ziggurat import weights"]),
        ("notes.txt", ["not GGUF"]),
    ],
)
def test_a_file_of_another_kind_is_no_damaged_gguf(name, parts, tmp_path):
    (tmp_path / name).write_text("x = 1")
    with pytest.raises(Exception, match="model ") as caught:
        pretrained.load(tmp_path / name)
    for part in parts:
        assert part in str(caught.value), str(caught.value)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("protocol", CLIENTS)
def test_a_store_without_its_client_names_the_package(protocol, monkeypatch):
    package, fix = CLIENTS[protocol]
    import fsspec

    def missing(*_, **__):
        raise ImportError(f"Install {package}", name=package)

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(Exception, match=f"no package {package}") as caught:
        list_files(TextFiles(path=f"{protocol}://bucket/corpus"))
    assert fix in str(caught.value)


def test_progress_off_a_terminal_is_a_line_now_and_then(caplog):
    with caplog.at_level("INFO", "ziggurat"), console.progress("compiling", every_s=0.0) as told:
        for done in range(3):
            told(f"decode of {done}", done, 3)
    assert [record.message for record in caplog.records][-1] == "compiling decode of 2 (3 of 3)"
