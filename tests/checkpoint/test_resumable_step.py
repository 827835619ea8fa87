"""A step written in batches is an ordinary step, and a kill costs at most one batch."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest

from ziggurat.checkpoint import Checkpoints, StepReader, read_arrays, verify_step
from ziggurat.checkpoint.manifest import LeafRecord
from ziggurat.checkpoint.resumable_step import PROGRESS, SUFFIX, ArrayPlan, ResumableStep
from ziggurat.core.errors import CheckpointError
from ziggurat.mesh import MeshConfig, build

RNG = np.random.default_rng(0)
ARRAYS = {
    "stack.kernel": RNG.standard_normal((3, 8, 5)).astype(ml_dtypes.bfloat16),
    "norm": RNG.standard_normal(7).astype(np.float32),
    "zeros": np.zeros((4, 2), np.float32),
    "packed": RNG.integers(-8, 8, (4, 4)).astype(ml_dtypes.int4),
    "scalar": np.asarray(3.0, np.float32),
    "empty": np.zeros((0, 2), np.float32),
}
BLOCKS = {"stack.kernel": (1, 3, 5), "empty": (1, 2)}
BATCHES = [
    [("stack.kernel", (0, 0, 0)), ("stack.kernel", (0, 3, 0)), ("stack.kernel", (0, 6, 0))],
    [("stack.kernel", (1, 0, 0)), ("stack.kernel", (1, 3, 0)), ("stack.kernel", (1, 6, 0))],
    [("stack.kernel", (2, 0, 0)), ("stack.kernel", (2, 3, 0)), ("stack.kernel", (2, 6, 0))],
    [("norm", (0,)), ("zeros", (0, 0)), ("packed", (0, 0)), ("scalar", ())],
]


def step(directory, identity="a"):
    plans = [
        ArrayPlan(
            LeafRecord(tuple(name.split(".")), array.shape, str(array.dtype)),
            BLOCKS.get(name, array.shape),
        )
        for name, array in ARRAYS.items()
    ]
    return ResumableStep(directory, "params", plans, {"identity": identity})


def parts(number):
    for name, start in BATCHES[number]:
        block = BLOCKS.get(name, ARRAYS[name].shape)
        yield name, start, ARRAYS[name][tuple(slice(a, a + n) for a, n in zip(start, block))]


def written(directory):
    with step(directory) as writing:
        for number in range(len(BATCHES)):
            writing.write(parts(number))
        return writing.commit({"source": "here"}, {"model.json": b"{}", "sub/file": b"x"})


def check(path):
    verify_step(path)
    arrays = read_arrays(path, "params")
    found = {"stack.kernel": arrays.pop("stack")["kernel"]} | arrays
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_it_is_a_step_like_any_other(tmp_path):
    path = written(tmp_path / "out")
    check(path)
    assert [info.intact for info in StepReader(tmp_path / "out").steps()] == [True]
    assert (path / "sub/file").read_bytes() == b"x"
    assert json.loads((path / "records.json").read_text()) == {"source": "here"}
    assert not (tmp_path / f"out{SUFFIX}").exists()


def test_orbax_alone_reads_it(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.restore(written(tmp_path / "out") / "arrays/params")
    np.testing.assert_array_equal(found["stack"]["kernel"], ARRAYS["stack.kernel"])
    np.testing.assert_array_equal(found["zeros"], ARRAYS["zeros"])


def test_it_is_restored_onto_a_mesh(tmp_path):
    written(tmp_path / "out")
    layout = build(MeshConfig(fsdp=8))
    sharding = jax.NamedSharding(layout.mesh, jax.P(None, "fsdp"))
    wanted = {
        "stack": {"kernel": jax.ShapeDtypeStruct((3, 8, 5), "bfloat16", sharding=sharding)},
        "zeros": jax.ShapeDtypeStruct((4, 2), "float32"),
    }
    with Checkpoints(tmp_path / "out") as checkpoints:
        found = checkpoints.restore(0, {"params": wanted}, partial=True).arrays["params"]
    kernel = found["stack"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 1, 5)}
    np.testing.assert_array_equal(kernel, ARRAYS["stack.kernel"])


@pytest.mark.parametrize("finished", range(len(BATCHES) + 1))
def test_it_resumes_where_it_was(tmp_path, finished, monkeypatch):
    with step(tmp_path / "out") as writing:
        for number in range(finished):
            writing.write(parts(number))
        if finished < len(BATCHES):  # data of a batch that was never counted
            monkeypatch.setattr(writing, "_note", lambda: None)
            writing.write(parts(finished))
    with step(tmp_path / "out") as writing:
        assert writing.finished == finished
        for number in range(finished, len(BATCHES)):
            writing.write(parts(number))
        check(writing.commit({}, {}))


def test_another_source_begins_anew(tmp_path, caplog):
    with step(tmp_path / "out") as writing:
        writing.write(parts(0))
    with step(tmp_path / "out", identity="b") as writing:
        assert writing.finished == 0
    assert "it begins anew" in caplog.text


def test_a_progress_file_cut_short_begins_anew(tmp_path):
    with step(tmp_path / "out") as writing:
        writing.write(parts(0))
    (tmp_path / f"out{SUFFIX}" / PROGRESS).write_text("{")
    with step(tmp_path / "out") as writing:
        assert writing.finished == 0


def test_an_output_with_a_checkpoint_is_refused(tmp_path):
    written(tmp_path / "out")
    with pytest.raises(CheckpointError, match="a new or empty directory"):
        step(tmp_path / "out")


def test_only_one_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("ziggurat.checkpoint.writer_lock.PATIENCE_S", 0.1)
    with step(tmp_path / "out"), pytest.raises(CheckpointError, match="another process"):
        step(tmp_path / "out")


def test_what_is_discarded_leaves_nothing(tmp_path):
    with step(tmp_path / "out") as writing:
        writing.write(parts(0))
        writing.discard()
    assert not list(tmp_path.iterdir())
