"""Safetensors directories: shards, index, every type, and each kind of damage by name."""

import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ziggurat.core import atomic
from ziggurat.core.errors import CheckpointError
from ziggurat.formats import SafetensorsDirectory, write_sharded

RNG = np.random.default_rng(0)
TENSORS = [
    ("model.embed.weight", RNG.normal(size=(16, 8)).astype(np.float32)),
    ("model.norm.weight", np.arange(3).astype(ml_dtypes.bfloat16)),
    ("scale", np.array(2.5, np.float32)),
    ("none", np.zeros((0, 4), np.float16)),
    ("ids", np.arange(5, dtype=np.int64)),
    ("mask", np.array([True, False, True])),
    ("f8", np.arange(7, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)),
    ("transposed", RNG.normal(size=(4, 6)).astype(np.float32).T),
    ("jax", jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)),
]


def error_of(function, *args, **kwargs) -> str:
    with pytest.raises(CheckpointError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_holds(directory, tensors):
    reader = SafetensorsDirectory(directory)
    assert set(reader) == {name for name, _ in tensors}
    assert len(reader) == len(tensors)
    for name, value in tensors:
        value = np.asarray(value)
        info, found = reader.info(name), reader.read(name)
        assert (info.shape, info.dtype) == (value.shape, value.dtype) == (found.shape, found.dtype)
        assert found.tobytes() == value.tobytes(), name
        assert not found.flags.writeable


@pytest.mark.parametrize(("limit", "shards"), [(10**9, 1), (600, 2), (100, 5), (1, 9)])
def test_write_and_read(tmp_path, limit, shards):
    files = write_sharded(tmp_path, iter(TENSORS), limit)
    assert_holds(tmp_path, TENSORS)
    assert sorted(files) == sorted(tmp_path.iterdir())
    if shards == 1:
        assert [file.name for file in files] == ["model.safetensors"]
        return
    *data, index = files
    # A shard without bytes takes no room: "none" shares one even at the smallest limit.
    assert len(data) in (shards, shards - 1)
    assert index.name == "model.safetensors.index.json"
    body = json.loads(index.read_text())
    assert body["metadata"]["total_size"] == sum(np.asarray(v).nbytes for _, v in TENSORS)
    assert list(body["weight_map"]) == [name for name, _ in TENSORS]
    for number, file in enumerate(data, 1):
        assert file.name == f"model-{number:05d}-of-{len(data):05d}.safetensors"
        with safe_open(file, framework="np") as opened:
            assert opened.metadata() == {"format": "pt"}
            names = {name for name, home in body["weight_map"].items() if home == file.name}
            assert set(opened.keys()) == names
            sizes = [np.asarray(v).nbytes for name, v in TENSORS if name in names]
            assert sum(sizes) <= limit or max(sizes) == sum(sizes)


def test_the_library_reads_the_same_values(tmp_path):
    write_sharded(tmp_path, TENSORS, metadata={"format": "pt", "note": "x"})
    with safe_open(tmp_path / "model.safetensors", framework="np") as opened:
        assert opened.metadata() == {"format": "pt", "note": "x"}
        for name, value in TENSORS:
            if name != "f8":  # the library's numpy side lacks float8
                np.testing.assert_array_equal(opened.get_tensor(name), np.asarray(value))


def test_a_file_of_the_library_is_read(tmp_path):
    values = {name: np.ascontiguousarray(value) for name, value in TENSORS if name != "scale"}
    save_file(values, tmp_path / "adapter.safetensors", metadata={"format": "np"})
    for reader in (
        SafetensorsDirectory(tmp_path / "adapter.safetensors"),
        SafetensorsDirectory(tmp_path, stem="adapter"),
    ):
        assert reader.metadata == {"format": "np"}
        for name, value in values.items():
            assert reader.read(name).tobytes() == value.tobytes()


def test_a_new_export_replaces_the_old_one_and_nothing_else(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    write_sharded(tmp_path, TENSORS, 100)
    write_sharded(tmp_path, TENSORS[:4], 300)
    assert_holds(tmp_path, TENSORS[:4])
    write_sharded(tmp_path, TENSORS[:2])
    assert_holds(tmp_path, TENSORS[:2])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    write_sharded(tmp_path, TENSORS[:3], 100)
    assert_holds(tmp_path, TENSORS[:3])


def test_a_failed_export_leaves_the_old_one(tmp_path):
    write_sharded(tmp_path, TENSORS[:2])

    def broken():
        yield from TENSORS
        raise RuntimeError("the model is gone")

    with pytest.raises(RuntimeError):
        write_sharded(tmp_path, broken(), 100)
    assert_holds(tmp_path, TENSORS[:2])
    assert not any(atomic.TEMPORARY in entry.name for entry in tmp_path.iterdir())


def test_what_cannot_be_written_is_named(tmp_path):
    twice = [("a", np.ones(2)), ("b", np.ones(2)), ("a", np.ones(2))]
    for limit in (1, 10**9):
        assert "tensor a: found the name twice" in error_of(write_sharded, tmp_path, twice, limit)
    odd = [("q", np.ones(2, ml_dtypes.int4))]
    assert "tensor q: found type int4" in error_of(write_sharded, tmp_path, odd)
    assert "no tensors to write" in error_of(write_sharded, tmp_path, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0, 5, 8, 60, 200, -1])
def test_truncated_files_are_named(tmp_path, keep):
    write_sharded(tmp_path, TENSORS)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    text = error_of(SafetensorsDirectory, tmp_path)
    assert f"safetensors file {file}" in text
    assert "a whole safetensors file" in text


def test_damaged_sharded_directories(tmp_path):
    text = error_of(SafetensorsDirectory, tmp_path / "none")
    assert "no such file or directory" in text
    assert "model.safetensors or model.safetensors.index.json" in error_of(
        SafetensorsDirectory, tmp_path
    )
    *shards, index = write_sharded(tmp_path, TENSORS, 100)
    good = index.read_text()
    body = json.loads(good)

    body["weight_map"]["lm_head.weight"] = shards[1].name
    index.write_text(json.dumps(body))
    text = error_of(SafetensorsDirectory, tmp_path)
    assert f"tensor lm_head.weight: found it is not in {shards[1]}" in text

    index.write_text(json.dumps({"weight_map": {"x": "../secret.safetensors"}}))
    assert "files in the same directory" in error_of(SafetensorsDirectory, tmp_path)
    for broken in (good[: len(good) // 2], "[]", '{"weight_map": [1]}', "{}"):
        index.write_text(broken)
        assert f"index {index}" in error_of(SafetensorsDirectory, tmp_path)

    index.write_text(good)
    content = shards[2].read_bytes()
    shards[2].write_bytes(content[:-1])
    assert f"safetensors file {shards[2]}" in error_of(SafetensorsDirectory, tmp_path)
    shards[2].unlink()
    text = error_of(SafetensorsDirectory, tmp_path)
    first = next(n for n, home in json.loads(good)["weight_map"].items() if home == shards[2].name)
    assert f"shard {shards[2]}: found no such file; expected tensor {first}" in text
    shards[2].write_bytes(content)
    text = error_of(SafetensorsDirectory(tmp_path).read, "model.embed.weights")
    assert "did you mean model.embed.weight?" in text


def test_a_tensor_that_stands_in_two_places_must_be_one_tensor(tmp_path):
    """The index names one shard; transformers reads whole files, so the other may win there."""
    *shards, index = write_sharded(tmp_path, [(f"t{n}", np.full(8, n)) for n in range(3)], 64)
    body = json.loads(index.read_text())
    home = body["weight_map"]["t0"]
    other = next(shard for shard in shards if shard.name != home)
    for value, good in ((0, True), (5, False)):
        held = {**load_file(other), "t0": np.full(8, value)}
        save_file(held, other)
        if good:
            assert SafetensorsDirectory(tmp_path).read("t0").tolist() == [0] * 8
        else:
            text = error_of(SafetensorsDirectory, tmp_path)
            assert text.startswith(f"tensor t0: found other values in {other}")


def test_a_tensor_that_the_index_leaves_out_counts_all_the_same(tmp_path):
    *_, index = write_sharded(tmp_path, [(f"t{n}", np.full(8, n)) for n in range(3)], 64)
    body = json.loads(index.read_text())
    shard = tmp_path / body["weight_map"]["t1"]
    save_file({"unlisted": np.ones(2), **load_file(shard)}, shard)
    assert "unlisted" in SafetensorsDirectory(tmp_path)


def test_a_name_twice_in_one_header_is_refused(tmp_path):
    from ziggurat.formats.safetensors_files import _each_once

    assert _each_once([("a", 1), ("b", 2)]) == {"a": 1, "b": 2}
    with pytest.raises(ValueError, match="the name a twice"):
        json.loads('{"a": 1, "a": 2}', object_pairs_hook=_each_once)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_files_of_pytorch_alone_are_named_with_the_way_to_convert_them(tmp_path, name):
    assert "check the path" in error_of(SafetensorsDirectory, tmp_path)
    (tmp_path / name).write_bytes(b"")
    text = error_of(SafetensorsDirectory, tmp_path)
    assert f"found none, but {name}" in text
    command = f"ziggurat export weights {tmp_path} --to safetensors --output {tmp_path}/model"
    assert command in text
