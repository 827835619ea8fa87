"""Damaged steps get their names back when, and only when, intact copies of their files exist."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from ziggurat.checkpoint import CheckpointConfig, Checkpoints, verify_step
from ziggurat.checkpoint.difference import compare, difference
from ziggurat.checkpoint.quarantine import quarantined
from ziggurat.checkpoint.repair import repair
from ziggurat.core.errors import CheckpointError


def arrays(step: int):
    return {"params": {"w": np.arange(400, dtype=np.float32) * step, "b": np.full(3, step)}}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp("original")
    with Checkpoints(directory, CheckpointConfig(keep_last=2)) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, arrays(step), {"step": step}, {"run.toml": b"steps = 20\n"})
    return directory


@pytest.fixture
def run(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "run"))


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def files_of(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


@pytest.mark.parametrize("how", ["spoil", "remove", "extra"])
def test_files_come_from_an_intact_copy(original, run, how):
    step = run / "step_00000020"
    names = {path.relative_to(step).as_posix() for path in files_of(step)}
    for name in names:
        if how == "spoil":
            spoil(step / name)
        elif how == "remove":
            (step / name).unlink()
    if how == "extra":
        (step / "arrays/params/checkpoint").write_bytes(b"x")
    (entry,) = repair(run, [original])
    assert (entry.step, entry.repaired, entry.missing) == (20, True, {})
    assert set(entry.copied) == (set() if how == "extra" else names)
    assert entry.path == step
    verify_step(step)
    assert quarantined(run) == []
    restored = Checkpoints(run).restore(None, arrays(0))
    assert restored.step == 20
    np.testing.assert_array_equal(restored.arrays["params"]["w"], arrays(20)["params"]["w"])


def test_two_damaged_copies_make_an_intact_one(original, run, tmp_path):
    other = Path(shutil.copytree(original / "step_00000020", tmp_path / "step_00000020"))
    ours = files_of(run / "step_00000020")
    for path in ours[::2]:
        spoil(path)
    for path in files_of(other)[1::2]:
        spoil(path)
    with pytest.raises(CheckpointError):
        verify_step(other)
    (entry,) = repair(run, [tmp_path])
    assert entry.repaired
    assert len(entry.copied) == len(ours[::2])
    verify_step(run / "step_00000020")


def test_without_a_copy_the_step_is_set_aside_and_can_be_repaired_later(original, run):
    spoil(run / "step_00000020" / "records.json")
    (entry,) = repair(run)
    assert not entry.repaired
    assert list(entry.missing) == ["records.json"]
    assert entry.path.name.startswith("step_00000020.damaged-digest-")
    assert Checkpoints(run).restore(None, arrays(0)).step == 10
    (again,) = repair(run, [original / "step_00000010"])  # a copy of another step does not help
    assert not again.repaired
    (later,) = repair(run, [original / "step_00000020"])
    assert later.repaired
    assert later.copied == ("records.json",)
    assert repair(run, [original]) == []


def test_a_wrong_copy_is_never_taken(original, run, tmp_path):
    spoil(run / "step_00000020" / "manifest.json")
    other = Path(shutil.copytree(original, tmp_path / "other"))
    spoil(other / "step_00000020" / "manifest.json")
    (entry,) = repair(run, [other])
    assert entry.missing == {"manifest.json": "altered, and no intact copy"}
    assert quarantined(run)[0].reason == "manifest"


def test_a_step_that_was_made_again_keeps_its_name(original, run):
    spoil(run / "step_00000020" / "records.json")
    repair(run)
    shutil.copytree(original / "step_00000020", run / "step_00000020")
    (entry,) = repair(run, [original])
    assert (entry.repaired, entry.missing) == (False, {})
    assert entry.note == "step_00000020 is there already"
    verify_step(run / "step_00000020")


def test_temporaries_go_and_a_writer_is_not_disturbed(run, monkeypatch):
    from ziggurat.checkpoint import writer_lock

    monkeypatch.setattr(writer_lock, "PATIENCE_S", 0.1)
    left = run / "step_00000030.tmp-writing"
    left.mkdir()
    gone: list[str] = []
    assert repair(run, swept=gone.append) == []
    assert gone == [left.name]
    assert not left.exists()
    with Checkpoints(run) as writer:
        writer._lock.acquire()
        with pytest.raises(CheckpointError, match="another process that saves here"):
            repair(run)
    with pytest.raises(CheckpointError, match="no such directory"):
        repair(run, [run / "nowhere"])


def test_difference_of_steps(original, tmp_path):
    step = original / "step_00000020"
    assert not difference(step, step)
    found = difference(original / "step_00000010", step)
    assert [(leaf.leaf, leaf.what) for leaf in found.leaves] == [("b", "values"), ("w", "values")]
    b, w = found.leaves
    assert (b.max_absolute, b.relative_l2) == (10.0, 1.0)
    assert (w.max_absolute, w.relative_l2) == (3990.0, 1.0)
    assert found.records == {"step": (10, 20)}
    assert found.files == {}

    other = {
        "params": {"w": np.zeros((20, 20), np.float32), "c": np.ones(2), "b": np.full(3, 20.0)},
        "optimizer": {"mu": np.ones(2)},
    }
    with Checkpoints(tmp_path / "other") as checkpoints:
        checkpoints.save(20, other, {"step": 20, "data": {"next": 3}}, {"run.toml": b"", "x": b""})
    found = difference(step, tmp_path / "other" / "step_00000020")
    assert [
        (leaf.item, leaf.leaf, leaf.what, leaf.first, leaf.second) for leaf in found.leaves
    ] == [
        ("optimizer", "mu", "only in the second", "", "float64[2]"),
        ("params", "w", "shape", "float32[400]", "float32[20, 20]"),
        ("params", "c", "only in the second", "", "float64[2]"),
        ("params", "b", "type", "int64", "float64"),
    ]
    assert found.leaves[-1].max_absolute == 0.0
    assert found.records == {"data.next": (None, 3)}
    assert found.files == {"run.toml": "content", "x": "only in the second"}


def test_comparison_of_values():
    nan = float("nan")
    assert compare(np.array([1.0, nan]), np.array([1.0, nan])) == (0.0, 0.0)
    assert compare(np.array([1.0, 2.0]), np.array([1.0, nan])) == (np.inf, np.inf)
    assert compare(np.zeros(2), np.ones(2)) == (1.0, None)
    assert compare(np.zeros(0), np.zeros(0)) == (0.0, None)
    assert compare(np.array([3 + 4j]), np.array([3 + 0j])) == (4.0, 0.8)
