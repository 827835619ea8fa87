"""No damaged byte is ever restored: it is named, the step is set aside, the one before is used."""

import logging
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from ziggurat.checkpoint import (
    CheckpointConfig,
    Checkpoints,
    DamagedError,
    read_arrays,
    read_records,
    verify_step,
)
from ziggurat.checkpoint.quarantine import quarantined
from ziggurat.core.errors import CheckpointError

FILES = {"run.toml": b"steps = 30\nseed = 3\n", "tok/t.json": b'{"vocabulary": 256}'}


def arrays(step: int):
    values = np.arange(400, dtype=np.float32) * step
    return {
        "params": {"embed": values.reshape(20, 20), "b": values[:7].copy()},
        "optimizer": {"mu": values[::-1].copy(), "count": np.int32(step)},
    }


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp("original")
    with Checkpoints(directory, CheckpointConfig(keep_last=3)) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, arrays(step), {"step": step}, FILES, {"eval_loss": 1 / step})
    return directory


@pytest.fixture
def run(original, tmp_path):
    """A copy of a directory with intact steps 10, 20 and 30."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def assert_holds(restored, step: int) -> None:
    assert (restored.step, restored.records) == (step, {"step": step})
    expected = arrays(step)
    assert jax.tree.structure(restored.arrays) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(restored.arrays), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def files_of(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def flip(path: Path, at: int, bit: int = 4) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def damage(path: Path, how: str) -> None:
    size = path.stat().st_size
    if how == "flip":
        flip(path, size // 2)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: size // 2])
    elif how == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
    else:
        path.unlink()


@pytest.mark.slow
def test_two_hundred_random_flips_are_all_found(run):
    """Each in any byte of any file, the manifest included; read as a mere reader beside a writer,
    so that the step stays where it is."""
    step, random = run / "step_00000030", np.random.default_rng(7)
    files = files_of(step)
    sizes = np.array([path.stat().st_size for path in files])
    kinds = set()
    writer = Checkpoints(run)
    writer._lock.acquire()
    for trial in range(200):
        # Half of them spread over files, half over bytes, so that small and large files are hit.
        odds = None if trial % 2 else sizes / sizes.sum()
        index = int(random.choice(len(files), p=odds))
        path, before = files[index], files[index].read_bytes()
        flip(path, int(random.integers(len(before))), int(random.integers(8)))
        reader = Checkpoints(run)
        with pytest.raises(DamagedError) as caught:
            reader.restore(30, arrays(0))
        relative = path.relative_to(step)
        assert list(caught.value.files) == [relative.as_posix()]
        assert str(path) in str(caught.value)
        if trial % 20 == 0:
            assert_holds(reader.restore(None, arrays(0)), 20)
        path.write_bytes(before)
        kinds.add(relative.parts[0])
    assert kinds == {"manifest.json", "records.json", "arrays", "run.toml", "tok"}
    assert_holds(Checkpoints(run).restore(30, arrays(0)), 30)
    writer.close()


@pytest.mark.parametrize("how", ["flip", "cut", "longer", "remove"])
def test_damage_of_every_file_is_named_and_the_step_before_is_used(run, how, caplog):
    names = [path.relative_to(run / "step_00000030") for path in files_of(run / "step_00000030")]
    for name in names:
        step = run / "step_00000030"
        before = (step / name).read_bytes()
        damage(step / name, how)
        with Checkpoints(run) as fresh:
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                restored = fresh.restore(None, arrays(0))
            assert_holds(restored, 20)
            assert "step 30 is damaged" in caplog.text
            assert name.name in caplog.text
            assert [info.step for info in fresh.steps()] == [10, 20]
        (aside,) = quarantined(run)
        assert aside.step == 30
        assert aside.home == step
        (aside.path / name).write_bytes(before)
        aside.path.rename(step)
    assert_holds(Checkpoints(run).restore(None, arrays(0)), 30)


@pytest.mark.parametrize(
    ("how", "reason"), [("flip", "digest"), ("cut", "size"), ("remove", "missing")]
)
def test_the_name_of_a_step_set_aside_says_why(run, how, reason):
    damage(run / "step_00000030" / "records.json", how)
    assert_holds(Checkpoints(run).restore(None, arrays(0)), 20)
    assert quarantined(run)[0].reason == reason
    damage(run / "step_00000020" / "manifest.json", how)
    assert_holds(Checkpoints(run).restore(None, arrays(0)), 10)
    assert [entry.reason for entry in quarantined(run)] == ["manifest", reason]


def test_swapped_files_are_found(run):
    """Two data files of one item, one file of two steps, and the arrays of two steps."""
    step = run / "step_00000030"
    data = sorted(step.glob("arrays/*/ocdbt.process_0/d/*"), key=lambda p: p.stat().st_size)
    a, b = data[-1], data[-2]
    assert a.read_bytes() != b.read_bytes()
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    writer = Checkpoints(run)
    writer._lock.acquire()
    with pytest.raises(DamagedError) as caught:
        Checkpoints(run).restore(30, arrays(0))
    assert {str(step / name) for name in caught.value.files} == {str(a), str(b)}
    assert "1 more damaged file" in str(caught.value)
    a.write_bytes(first)
    b.write_bytes(second)

    for name in ("arrays", "records.json", "manifest.json"):
        (step / name).rename(run / "kept")
        if (run / "step_00000020" / name).is_dir():
            shutil.copytree(run / "step_00000020" / name, step / name)
        else:
            shutil.copyfile(run / "step_00000020" / name, step / name)
        with pytest.raises(DamagedError):
            Checkpoints(run).restore(30, arrays(0))
        shutil.rmtree(step / name) if (step / name).is_dir() else (step / name).unlink()
        (run / "kept").rename(step / name)
    assert_holds(Checkpoints(run).restore(30, arrays(0)), 30)
    writer.close()


def test_a_step_under_the_name_of_another_is_refused(run):
    shutil.rmtree(run / "step_00000030")
    shutil.copytree(run / "step_00000010", run / "step_00000030")
    assert [info.intact for info in Checkpoints(run).steps()] == [True, True, False]
    assert_holds(Checkpoints(run).restore(None, arrays(0)), 20)
    assert [(entry.step, entry.reason) for entry in quarantined(run)] == [(30, "manifest")]


@pytest.mark.parametrize(
    "name",
    [
        "arrays/params/checkpoint",  # Orbax would take this for arrays in an old format
        "arrays/params/ocdbt.process_1/manifest.ocdbt",
        "arrays/params/d/0",
        "arrays/other/_METADATA",
    ],
)
def test_an_extra_file_among_the_arrays_is_damage(run, name):
    import msgpack

    path = run / "step_00000030" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgpack.packb({"embed": [1.0], "b": [2.0]}))
    assert_holds(Checkpoints(run).restore(None, arrays(0)), 20)
    (aside,) = quarantined(run)
    with pytest.raises(DamagedError, match=path.name):
        verify_step(aside.path)


def test_an_extra_file_elsewhere_changes_nothing(run):
    (run / "step_00000030" / "note.txt").write_text("the good one")
    assert_holds(Checkpoints(run).restore(None, arrays(0)), 30)
    found = read_arrays(run / "step_00000030", "params")
    assert isinstance(found, dict)
    np.testing.assert_array_equal(found["embed"], arrays(30)["params"]["embed"])


def test_every_byte_of_the_manifest_counts(run):
    path = run / "step_00000030" / "manifest.json"
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CheckpointError):
            verify_step(path.parent)


def test_a_manifest_of_the_first_format_still_reads(run):
    import json

    import xxhash

    path = run / "step_00000030" / "manifest.json"
    body = json.loads(path.read_text())
    del body["digest"], body["metrics"]
    body["format"] = 1
    digest = xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())
    path.write_text(json.dumps({**body, "digest": digest}, indent=1) + "\n")
    assert_holds(Checkpoints(run).restore(30, arrays(0)), 30)
    assert verify_step(path.parent).metrics == {}


def test_a_damaged_step_is_set_aside_when_its_number_is_saved_again(run):
    for step in (20, 30):
        damage(run / f"step_000000{step}" / "arrays/params/_METADATA", "flip")
    with Checkpoints(run, CheckpointConfig(keep_last=3)) as again:
        assert [info.step for info in again.steps()] == [10, 20, 30]  # sizes are right
        again.save(20, arrays(25), {"step": 20})
        again.wait()
        assert [entry.step for entry in quarantined(run)] == [20]
        assert_holds(again.restore(20, arrays(0))._replace(arrays=arrays(20)), 20)
        np.testing.assert_array_equal(
            again.restore(20, arrays(0)).arrays["params"]["b"], arrays(25)["params"]["b"]
        )


def test_a_reader_beside_a_writer_moves_nothing(run):
    damage(run / "step_00000030" / "records.json", "flip")
    writer = Checkpoints(run)
    writer._lock.acquire()
    reader = Checkpoints(run)
    assert_holds(reader.restore(None, arrays(0)), 20)
    assert quarantined(run) == []
    newest = reader.latest()
    assert newest is not None
    assert newest.step == 20
    writer.close()
    assert_holds(reader.restore(None, arrays(0)), 20)
    assert [entry.step for entry in quarantined(run)] == [30]


def test_what_was_set_aside_is_never_deleted_or_restored(run):
    for step in (10, 20, 30):
        damage(run / f"step_000000{step}" / "records.json", "flip")
    with Checkpoints(run, CheckpointConfig(keep_last=1)) as checkpoints:
        with pytest.raises(CheckpointError, match="no intact checkpoint"):
            checkpoints.restore(None, arrays(0))
        assert checkpoints.steps() == []
        for step in (40, 50):
            checkpoints.save(step, arrays(step), {"step": step})
        checkpoints.wait()
        assert [info.step for info in checkpoints.steps()] == [50]
    assert [entry.step for entry in quarantined(run)] == [10, 20, 30]


def test_data_that_cannot_be_read_names_the_item_even_without_verify(tmp_path):
    noise = np.random.default_rng(0).normal(size=1 << 16).astype(np.float32)
    with Checkpoints(tmp_path, CheckpointConfig(verify=False)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"params": {"w": noise}})
        checkpoints.wait()
        files = (tmp_path / "step_00000002/arrays/params").rglob("*")
        damage(max((p for p in files if p.is_file()), key=lambda p: p.stat().st_size), "cut")
        with pytest.raises(DamagedError, match="arrays/params: found data that cannot be read"):
            checkpoints.restore(2, {"params": {"w": noise}})
        assert checkpoints.restore(None, {"params": {"w": noise}}).step == 1


def test_records_that_were_altered_are_refused_alone(run):
    flip(run / "step_00000030" / "records.json", 12, 0)
    with pytest.raises(DamagedError, match=r"records\.json"):
        read_records(run / "step_00000030")
