"""The doctor: true facts, extras from the metadata, known traps, exit codes."""

import importlib.metadata
import json
from pathlib import Path

import pytest

from ziggurat.cli import doctor

CPU = doctor.DeviceGroup("cpu", "cpu", 1, None)
TPU = doctor.DeviceGroup("tpu", "TPU v5 lite", 4, 16.0)
GOOD = {"jax": "0.10.2", "jaxlib": "0.10.2"}
MACHINE = {"cpu_kernels": "x86-64-v3, 2 threads", "disk_free_gib": 100.0}


@pytest.fixture(autouse=True)
def _no_driver(monkeypatch, tmp_path):
    # all commands are tried in test_front_door.py, in a process that is not slowed by type checks
    works = {"data": doctor.Command(True, ""), "serve": doctor.Command(False, "no starlette")}
    monkeypatch.setattr(doctor, "check", lambda: works)
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", tmp_path / "none")


def test_json_tells_the_truth(capsys):
    assert doctor.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["errors"] == []
    assert report["versions"]["jax"] == importlib.metadata.version("jax")
    assert report["devices"] == [{"platform": "cpu", "kind": "cpu", "count": 8, "memory_gib": None}]
    assert report["extras"]["serve"] == {
        "installed": True,
        "missing": [],
        "install": "pip install 'ziggurat[serve]'",
    }
    assert report["machine"]["cores"] >= 1
    assert any("virtual" in line for line in report["warnings"])


def test_tables(capsys):
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    for part in (
        "jaxlib",
        "8 x cpu",
        "no starlette",
        "serve",
        "installed",
        "warning: XLA_FLAGS",
        "core works",
    ):
        assert part in text, part


def fake_metadata(monkeypatch, installed: dict[str, str], requires: dict[str, list[str]]):
    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: requires.get(name))


def test_lacking_reads_versions_markers_and_extras_of_requirements(monkeypatch):
    fake_metadata(
        monkeypatch,
        {"core": "2.0", "jax": "0.10.2", "old": "1.0", "local": "2.13.0+cpu", "libtpu": "0.1"},
        {
            "us": [
                "core>=1",
                "gone>=3; python_version >= '3.0'",
                "windows-only; python_version < '3.0'",
                "old>=2; extra == 'serve'",
                "local>=2.13; extra == 'serve'",
                "never; python_version < '3.0' and extra == 'serve'",
                "jax[tpu]; extra == 'tpu'",
            ],
            "jax": ["libtpu==0.2; extra == 'tpu'", "absent; extra == 'cuda'"],
        },
    )
    assert doctor.lacking("us") == ["gone>=3"]
    assert doctor.lacking("us", "serve") == ["old>=2 (found 1.0)"]
    assert doctor.lacking("us", "tpu") == ["libtpu==0.2 (found 0.1)"]


def test_a_missing_requirement_or_a_broken_jax_is_exit_1(monkeypatch, capsys):
    monkeypatch.setattr(
        doctor, "lacking", lambda name, extra="": ["flax>=9"] if not extra else ["ray>=2"]
    )
    monkeypatch.setattr(doctor, "start_jax", lambda: ([], "JAX does not start: because"))
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    assert "error: required and missing: flax>=9; pip install ziggurat" in text
    assert "error: JAX does not start: because" in text
    assert "pip install 'ziggurat[cluster]'" in text
    assert "core does not work" in text


def test_jax_that_raises_is_reported(monkeypatch):
    import jax

    def broken():
        raise RuntimeError("jaxlib is version 0.1,\n  but this needs 0.2")

    monkeypatch.setattr(jax, "devices", broken)
    devices, failure = doctor.start_jax()
    assert devices == []
    assert failure is not None
    assert "jaxlib is version 0.1, but this needs 0.2; pip install --upgrade" in failure


@pytest.mark.parametrize(
    ("devices", "versions", "machine", "environment", "part"),
    [
        ([CPU], {"libtpu": "0.1"}, {}, {}, "set JAX_PLATFORMS=cpu"),
        ([CPU], {"libtpu": "0.1"}, {}, {"JAX_PLATFORMS": "cpu"}, None),
        ([TPU], {"libtpu": "0.1"}, {}, {}, None),
        ([CPU], {"jaxlib": "0.10.1"}, {}, {}, "jax 0.10.2 beside jaxlib 0.10.1"),
        ([CPU], {"jax-cuda13-plugin": "0.9"}, {}, {}, "jax-cuda13-plugin 0.9 beside"),
        ([CPU], {}, {"disk_free_gib": 1.5}, {}, "1.5 GiB of disk"),
        ([CPU], {}, {"cpu_kernels": "none: not built; do this"}, {}, "slower: not built; do this"),
        ([TPU], {}, {"cpu_kernels": "none: not built; do this"}, {}, None),
        ([CPU], {}, {}, {}, None),
    ],
)
def test_traps(devices, versions, machine, environment, part):
    traps = doctor.find_traps(devices, GOOD | versions, MACHINE | machine, environment)
    assert len(traps) == (part is not None)
    assert part is None or part in traps[0]


def test_a_gpu_that_jax_does_not_see(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", tmp_path)
    assert "ziggurat[cuda]" in doctor.find_traps([CPU], GOOD, MACHINE, {})[0]


def test_kernels_are_named_by_level_or_by_what_is_missing(monkeypatch):
    from ziggurat.kernels.cpu import library

    built = library.Library(Path("a.so"), "x86-64-v3", frozenset({"product"}), "", 4)
    for found, said in (
        (built, "x86-64-v3, 4 threads"),
        (library.Library(None, None, frozenset(), "because"), "none: because"),
    ):
        monkeypatch.setattr(library, "library", lambda found=found: found)
        assert doctor.cpu_kernels() == said
