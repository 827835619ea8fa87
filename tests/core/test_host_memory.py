"""When a process is started anew for huge pages, and how."""

import errno
import json
import os
import subprocess
import sys

import pytest

from ziggurat.core import host_memory


@pytest.fixture
def system(monkeypatch, tmp_path):
    """A Linux that gives huge pages to those who ask."""
    file = tmp_path / "enabled"
    file.write_text("always [madvise] never\n")
    monkeypatch.setattr(host_memory, "_SYSTEM", file)
    monkeypatch.setattr(host_memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    return file


def test_asked_for_once_and_beside_what_is_there(system):
    assert host_memory.tunables({}) == "glibc.malloc.hugetlb=1"
    given = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}
    assert host_memory.tunables(given) == "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"
    assert host_memory.tunables({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=2"}) is None
    assert host_memory.tunables({"ZIGGURAT_HUGE_PAGES": "off"}) is None


@pytest.mark.parametrize("said", ["[always] madvise never", "always madvise [never]", None])
def test_left_alone_where_asking_changes_nothing(system, said):
    system.unlink()
    if said is not None:
        system.write_text(said)
    assert host_memory.tunables({}) is None


@pytest.mark.parametrize("libc", [("glibc", "2.31"), ("musl", "1.2"), ("", "")])
def test_left_alone_without_the_c_library_for_it(system, monkeypatch, libc):
    monkeypatch.setattr(host_memory.platform, "libc_ver", lambda: libc)
    assert host_memory.tunables({}) is None


PROGRAM = """
import json, os, sys
from pathlib import Path
from ziggurat.core import host_memory
host_memory._SYSTEM = Path(sys.argv[1])
host_memory.platform.libc_ver = lambda: ("glibc", "2.36")
before = os.environ.setdefault("BEFORE", str(os.getpid()))
host_memory.restart_with_huge_pages()
print(json.dumps([before == str(os.getpid()), os.environ["GLIBC_TUNABLES"], sys.argv[2:]]))
"""


def test_the_same_command_in_the_same_process(system):
    command = [sys.executable, "-X", "utf8", "-c", PROGRAM, str(system), "two words"]
    environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, "glibc.malloc.hugetlb=1", ["two words"]]


@pytest.mark.parametrize("why", ["too long", "missing", "not executable", "not permitted", "text"])
def test_a_refused_start_goes_on_in_small_pages(monkeypatch, capsys, tmp_path, why):
    """Whatever the system says to ``execve``, by the real call where a user can bring it about."""
    monkeypatch.setattr(host_memory, "tunables", lambda environment: "glibc.malloc.hugetlb=1")
    file = tmp_path / "python"
    match why:
        case "too long":
            monkeypatch.setattr(sys, "orig_argv", ["python", "x" * 2**18])
        case "missing":
            monkeypatch.setattr(sys, "executable", str(file))
        case "not executable":
            file.write_text("#!/bin/sh\n")
            monkeypatch.setattr(sys, "executable", str(file))
        case "text":
            file.write_bytes(b"\x7fELF of another machine")
            file.chmod(0o755)
            monkeypatch.setattr(sys, "executable", str(file))
        case "not permitted":

            def refuse(*_):
                raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

            monkeypatch.setattr(os, "execve", refuse)
    host_memory.restart_with_huge_pages()
    line = capsys.readouterr().err
    assert line.startswith("huge pages: ")
    assert "cannot be started anew (" in line
    assert line.count("\n") == 1
