"""Files and directories that exist wholly or not at all, whatever fails midway."""

import os
import subprocess
import sys

import pytest

from ziggurat.core import atomic


class Interrupted(BaseException):
    """Not an Exception: like a signal."""


def names(directory) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@pytest.mark.parametrize("content", [b"new", "new", b"", "ü\n"])
def test_write_and_replace(tmp_path, content):
    path = tmp_path / "file"
    for _ in range(2):
        atomic.write_file(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="disk full"):
            atomic.write_file(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_new_directory_appears_whole(tmp_path):
    final = tmp_path / "deep" / "final"
    with atomic.new_directory(final) as directory:
        (directory / "sub").mkdir()
        (directory / "sub" / "a").write_text("1")
        assert not final.exists()
    assert (final / "sub" / "a").read_text() == "1"
    assert names(final.parent) == ["final"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Interrupted])
def test_a_block_that_fails_leaves_nothing(tmp_path, error):
    def fill():
        with atomic.new_directory(tmp_path / "final") as directory:
            (directory / "a").write_text("1")
            raise error

    with pytest.raises(error):
        fill()
    assert names(tmp_path) == []


def test_a_directory_that_is_there_is_not_touched(tmp_path):
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "old").write_text("1")
    with pytest.raises(FileExistsError), atomic.new_directory(tmp_path / "final"):
        raise AssertionError("the block must not run")
    assert names(tmp_path / "final") == ["old"]
    assert names(tmp_path) == ["final"]


def test_remove_directory(tmp_path):
    (tmp_path / "final" / "sub").mkdir(parents=True)
    (tmp_path / "final" / "sub" / "a").write_text("1")
    atomic.remove_directory(tmp_path / "final")
    assert names(tmp_path) == []


def test_a_removal_cut_short_leaves_no_half_directory(tmp_path, monkeypatch):
    (tmp_path / "final").mkdir()

    def killed(path):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(atomic.shutil, "rmtree", killed)
        with pytest.raises(Interrupted):
            atomic.remove_directory(tmp_path / "final")
    assert not (tmp_path / "final").exists()
    assert len(atomic.sweep(tmp_path)) == 1
    assert names(tmp_path) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from ziggurat.core import atomic
with atomic.new_directory(Path(sys.argv[1]) / "final") as directory:
    (directory / "half").write_text("1")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_sweep_removes_what_a_kill_left_and_nothing_else(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert not (tmp_path / "final").exists()
    (tmp_path / f"file{atomic.TEMPORARY}123").write_text("half")
    (tmp_path / "outside").mkdir()
    (tmp_path / f"link{atomic.TEMPORARY}123").symlink_to(tmp_path / "outside")
    (tmp_path / "kept").write_text("1")
    assert len(atomic.sweep(tmp_path)) == 3
    assert names(tmp_path) == ["kept", "outside"]
    assert atomic.sweep(tmp_path) == []
