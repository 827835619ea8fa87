"""``ziggurat tour``: what it runs, and the page it writes."""

import pytest

from ziggurat.cli import tour
from ziggurat.cli.main import COMMANDS
from ziggurat.cli.tour_stops import STOPS, Stop
from ziggurat.core.errors import ConfigError


@pytest.mark.slow
def test_a_failed_command_is_told_and_the_next_row_is_visited(tmp_path, monkeypatch, capsys):
    broken = Stop(
        function="Broken",
        package="none",
        shows="a run that is not there",
        commands=("profile {out}/no", "doctor"),
    )
    doctor = next(stop for stop in STOPS if stop.commands == ("doctor",))
    left = Stop(
        function="Left",
        package="none",
        shows="a file & a <name>",
        commands=("doctor --help",),
        results=(("there", "there.txt"), ("not there", "no.txt")),
    )
    monkeypatch.setattr(tour, "STOPS", (broken, left))
    original = tour._visit

    def visit(stop, directory):
        (directory / "there.txt").write_text("x")
        return original(stop, directory)

    monkeypatch.setattr(tour, "_visit", visit)
    assert tour.main([f"--output={tmp_path}"]) == 1
    (page,) = tmp_path.glob("tour-*/index.html")
    text = page.read_text()
    assert text.count('<span class="status">failed</span>') == 1
    assert "expected" in text
    assert 'href="there.txt"' in text
    assert "no.txt" not in text
    assert "a file &amp; a &lt;name&gt;" in text
    assert "failed: Broken" in capsys.readouterr().out
    assert doctor.function == "Core framework"


def test_only_names_rows():
    with pytest.raises(ConfigError, match=r"--only: found Dato; expected some of .*Data"):
        tour.tour(only=("Dato",))


def test_every_command_is_a_verb():
    commands = {command.split()[0] for stop in STOPS for command in stop.commands}
    assert commands <= set(COMMANDS)
