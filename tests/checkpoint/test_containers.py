"""Foreign containers: files of PyTorch read without it, Orbax layouts, our steps, every writer."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tests.oracle import torch_files as oracle

from ziggurat.checkpoint import CheckpointConfig, Checkpoints, containers
from ziggurat.core.errors import CheckpointError
from ziggurat.formats import write_sharded
from ziggurat.formats.pytorch.names import DTYPES

RNG = np.random.default_rng(0)
TENSORS = {
    "a.table": RNG.normal(size=(6, 4)).astype(np.float32),
    "a.bf16": RNG.normal(size=(4, 6)).astype(ml_dtypes.bfloat16).T,
    "a.scalar": np.array(3, np.int64),
    "mask": np.array([True, False, True]),
    "jax": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
}


def error_of(function, *args, **kwargs) -> str:
    with pytest.raises(CheckpointError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_holds(tensors, expected):
    assert set(tensors) == set(expected)
    for name, value in expected.items():
        value = np.asarray(value)
        found = tensors.read(name)
        assert (tensors[name].shape, tensors[name].dtype) == (value.shape, value.dtype), name
        assert (found.shape, found.dtype) == (value.shape, value.dtype), name
        assert found.tobytes() == value.tobytes(), name
        if value.ndim == 2 and 0 not in value.shape:
            part = tensors[name].read(np.s_[1:, :2])
            assert part.tobytes() == value[1:, :2].tobytes(), name


@pytest.mark.parametrize(
    ("path", "kind", "expected", "metadata"),
    [
        (oracle.TYPES, "pt", oracle.types, oracle.TYPES_METADATA),
        (oracle.NANOGPT, "pt", oracle.nanogpt, oracle.NANOGPT_METADATA),
        (oracle.DISTRIBUTED, "distcp", oracle.distributed, oracle.DISTRIBUTED_METADATA),
    ],
    ids=["types", "nanogpt", "distributed"],
)
def test_files_of_torch(path, kind, expected, metadata):
    with containers.open(path) as tensors:
        assert tensors.kind == kind
        assert_holds(tensors, expected())
        assert tensors.metadata == metadata
        assert "did you mean" in error_of(tensors.read, next(iter(tensors)) + "s")


def test_reading_imports_no_torch():
    code = f"""
import sys
from ziggurat.checkpoint import containers
for path in {[str(p) for p in (oracle.TYPES, oracle.NANOGPT, oracle.DISTRIBUTED)]!r}:
    with containers.open(path) as tensors:
        [tensor.read() for tensor in tensors.values()], tensors.metadata
assert not {{"torch", "jax", "orbax"}} & {{name.partition(".")[0] for name in sys.modules}}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_slice_touches_only_its_chunks(tmp_path):
    folder = tmp_path / "dcp"
    folder.mkdir()
    for file in oracle.DISTRIBUTED.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "__1_0.distcp").unlink()
    with containers.open(folder) as tensors:
        rows = oracle.SHARDED["rows"]
        np.testing.assert_array_equal(tensors["model.rows"].read(np.s_[1:3]), rows[1:3])
        line = error_of(tensors["model.rows"].read, np.s_[1:4])
        assert "__1_0.distcp: found" in line
        assert error_of(tensors.read, "model.rows") == line.replace("1:4", "")


@pytest.mark.parametrize("kind", containers.KINDS)
def test_what_is_written_is_read(tmp_path, kind):
    told: list[tuple] = []
    out = containers.write(
        kind, TENSORS, tmp_path / "new" / "out", progress=lambda *event: told.append(event)
    )
    assert out == tmp_path / "new" / "out"
    with containers.open(out) as tensors:
        assert tensors.kind == kind
        assert_holds(tensors, TENSORS)
    total = sum(np.asarray(value).nbytes for value in TENSORS.values())
    assert [name for name, *_ in told] == list(TENSORS)
    assert told[0][1:] == (0, total)
    assert "found it exists" in error_of(containers.write, kind, TENSORS, out)
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["pt", "distcp"])
def test_every_type_and_empty_ones(tmp_path, kind):
    every = {name: np.arange(3).astype(dtype) for name, dtype in DTYPES.items()}
    every |= {"empty": np.zeros((0, 4), np.float32), "0": np.float64(1)}
    with containers.open(containers.write(kind, every, tmp_path / "x")) as tensors:
        assert_holds(tensors, every)
    line = error_of(containers.write, kind, {"q": np.zeros(2, ml_dtypes.int4)}, tmp_path / "y")
    assert "tensor q: found type int4" in line
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_what_cannot_be_written(tmp_path):
    write = functools.partial(error_of, containers.write)
    line = write("safetensor", TENSORS, tmp_path / "x")
    assert "did you mean safetensors?" in line
    assert "no tensors" in write("pt", {}, tmp_path / "x")
    assert "begins another" in write("orbax", {"a": np.ones(2), "a.b": np.ones(2)}, tmp_path / "x")
    assert "tensor e" in write("orbax", {"e": np.zeros((0, 2))}, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


class Gone:
    """A tensor whose file has vanished."""

    shape, dtype = (2,), np.dtype(np.float32)

    def __array__(self, dtype=None, copy=None):
        raise CheckpointError("tensor b", found="nothing")


@pytest.mark.parametrize("kind", containers.KINDS)
def test_a_failed_write_leaves_nothing(tmp_path, kind):
    broken = {"a": np.ones(2, np.float32), "b": Gone()}
    assert "tensor b" in error_of(containers.write, kind, broken, tmp_path / "x")
    assert "tensor b" in error_of(containers.write, kind, broken, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{}, {"use_zarr3": True}, {"use_ocdbt": False}],
                         ids=["ocdbt", "zarr3", "folders"])  # fmt: skip
def test_orbax_layouts(tmp_path, options):
    state = {
        "params": {"decoder": {"w": jnp.ones((4, 2), jnp.bfloat16)}, "list": [np.arange(3)]},
        "step": np.int32(7),
        "name": "run",
    }
    step = tmp_path / "checkpoints" / "12"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(step / "items", args=ocp.args.PyTreeSave(state))  # MaxText's layout
    expected = {
        "params.decoder.w": np.ones((4, 2), ml_dtypes.bfloat16),
        "params.list.0": np.arange(3),
        "step": np.array(7, np.int32),
    }
    for path, item in ((step / "items", None), (step, None), (step, "items"), (step.parent, None)):
        with containers.open(path, item) as tensors:
            assert tensors.kind == "orbax"
            assert_holds(tensors, expected)
            assert tensors.metadata == {"name": "run"}
    assert "did you mean items?" in error_of(containers.open, step, "item")
    data = [f for f in (step / "items").rglob("*") if f.is_file() and f.parent.name == "d"]
    data = data or [step / "items" / "params.decoder.w" / "0.0"]
    with containers.open(step) as tensors:
        for file in data:
            file.unlink()
        assert "params.decoder.w: found it cannot be read" in error_of(
            tensors.read, "params.decoder.w"
        )


def test_our_steps(tmp_path):
    params = {"w": np.ones((3, 2), np.float32), "none": np.zeros((0, 2), np.float32)}
    with Checkpoints(tmp_path / "checkpoints", CheckpointConfig()) as checkpoints:
        checkpoints.save(1, {"params": params, "moments": {"w": params["w"] * 2}}, {})
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "step_00000001"):
        with containers.open(path) as tensors:
            assert tensors.kind == "ziggurat"
            assert_holds(tensors, params)
            assert tensors.metadata == {"step": 1}
        with containers.open(path, "moments") as tensors:
            assert_holds(tensors, {"w": params["w"] * 2})
    assert "one of params, moments" in error_of(containers.open, path, "optimizer")
    file = next(f for f in (path / "arrays/params").rglob("*") if f.is_file() and f.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    assert f"damaged checkpoint file {file}" in error_of(containers.open, path)


def test_convert_selects_and_keeps_bytes(tmp_path):
    out = containers.convert(
        oracle.NANOGPT, "safetensors", tmp_path / "m.safetensors", select=["model.*"]
    )
    assert out.is_file()
    expected = {f"model.{name}": value for name, value in oracle.MODEL.items()}
    with containers.open(out) as tensors:
        assert_holds(tensors, expected)
    source = oracle.DISTRIBUTED
    for kind in ("pt", "orbax", "distcp", "safetensors"):
        source = containers.convert(source, kind, tmp_path / kind)
    with containers.open(source) as tensors:
        assert_holds(tensors, oracle.distributed())
    line = error_of(containers.convert, source, "pt", tmp_path / "no", select=["nothing*"])
    assert "no tensor like nothing*" in line
    assert not (tmp_path / "no").exists()


def test_shards_of_hugging_face(tmp_path):
    files = write_sharded(tmp_path / "safe", TENSORS.items(), 60)
    assert len(files) > 2
    with containers.open(tmp_path / "safe") as tensors:
        assert_holds(tensors, TENSORS)
    bins = tmp_path / "bins"
    bins.mkdir()
    homes = {}
    for index, name in enumerate(TENSORS):
        file = f"pytorch_model-{index}.bin"
        containers.write("pt", {name: TENSORS[name]}, bins / file)
        homes[name] = file
    index = bins / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": homes}))
    with containers.open(bins) as tensors:
        assert tensors.kind == "pt"
        assert_holds(tensors, TENSORS)
    index.write_text(json.dumps({"weight_map": homes | {"lost": "pytorch_model-0.bin"}}))
    assert "'lost'" in error_of(containers.open, bins)


def test_unknown_kinds_are_named(tmp_path):
    def refused(content: bytes, name: str = "x.bin") -> str:
        file = Path(tmp_path, name)
        file.write_bytes(content)
        return error_of(containers.open, file)

    assert "no such file or directory" in error_of(containers.open, tmp_path / "none")
    assert "a directory of another kind" in error_of(containers.open, tmp_path)
    assert "content of another kind" in refused(b"")
    assert "content of another kind" in refused(b"hello world, this is text")
    assert "use ziggurat import gguf" in refused(b"GGUF" + bytes(40))
    assert "before PyTorch 1.6" in refused(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    assert "no whole zip archive" in refused(oracle.TYPES.read_bytes()[:-100])
    assert "expected one with item params" in error_of(containers.open, oracle.NANOGPT, "params")
