"""Checkpoints of a run: save and restore on any sharding, donation, damage, retention, errors."""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ziggurat.checkpoint import (
    CheckpointConfig,
    Checkpoints,
    read_arrays,
    read_records,
    writer_lock,
)
from ziggurat.core import atomic, config
from ziggurat.core.errors import CheckpointError, ConfigError


class Moments(NamedTuple):
    mu: object
    nu: object


def tree(scale: float = 1.0):
    values = np.arange(8 * 16, dtype=np.float32).reshape(8, 16) * scale
    return {
        "params": {
            "embed": jnp.asarray(values),
            "blocks": [
                {"w": jnp.asarray(values, jnp.bfloat16)},
                {"w": jnp.asarray(values[::-1], jnp.bfloat16)},
            ],
            "scale": jnp.float32(scale),
        },
        "optimizer": Moments(jnp.asarray(values * 2), (jnp.int32(7), np.zeros((0, 3), np.float32))),
    }


def like(values):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), values)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture
def saved(tmp_path):
    """A directory with intact steps 10, 20 and 30."""
    with Checkpoints(tmp_path / "run", CheckpointConfig(keep_last=3)) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(
                step, tree(step), {"step": step}, {"run.toml": b"steps = 30\n", "tok/t.json": b"{}"}
            )
        yield checkpoints


def error_of(function, *args, **kwargs) -> str:
    with pytest.raises(CheckpointError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_round_trip_of_everything(tmp_path):
    records = {"data": {"next": 640, "mix": [0.25, 0.75]}, "seed": 0, "note": None, "on": True}
    note = tmp_path / "note.txt"
    note.write_text("kept")
    with Checkpoints(tmp_path / "run") as checkpoints:
        report = checkpoints.save(
            50, tree(), records, {"run.toml": b"a = 1\n", "tokenizer/t.json": note}
        )
        note.write_text("changed later")
        checkpoints.wait()
        assert report.total_s is not None
        assert 0 < report.blocking_s <= report.total_s
        restored = checkpoints.restore(None, like(tree()))
        assert_same(restored.arrays, tree())
        assert (restored.step, restored.records) == (50, records)
        info = checkpoints.latest()
        assert info is not None
        assert (info.step, info.intact, info.path.name) == (50, True, "step_00000050")
        size = sum(f.stat().st_size for f in info.path.rglob("*") if f.is_file())
        assert info.bytes == report.bytes == size - (info.path / "manifest.json").stat().st_size
        assert (info.path / "run.toml").read_bytes() == b"a = 1\n"
        assert (info.path / "tokenizer" / "t.json").read_text() == "kept"
    assert isinstance(restored.arrays["params"]["embed"], np.ndarray)


def test_bfloat16_and_narrow_types_keep_their_bits(tmp_path):
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = {
        "bf16": bits.view(ml_dtypes.bfloat16),
        "f8": np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn),
        "int4": np.arange(-8, 8).astype(ml_dtypes.int4),
        "bool": np.array([True, False]),
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": values})
        checkpoints.wait()
        for found in (
            checkpoints.restore(1, {"params": values}).arrays["params"],
            read_arrays(tmp_path / "step_00000001", "params"),
        ):
            for name, value in values.items():
                assert found[name].dtype == value.dtype
                assert found[name].tobytes() == value.tobytes(), name


def test_typed_prng_keys(tmp_path):
    keys = {"one": jax.random.key(3), "many": jax.random.split(jax.random.key(4, impl="rbg"), 5)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"keys": keys})
        checkpoints.wait()
        found = checkpoints.restore(1, {"keys": keys}).arrays["keys"]
    for name, key in keys.items():
        assert found[name].dtype == key.dtype
        np.testing.assert_array_equal(jax.random.key_data(found[name]), jax.random.key_data(key))
    words = read_arrays(tmp_path / "step_00000001", "keys")
    np.testing.assert_array_equal(words["one"], jax.random.key_data(keys["one"]))


@pytest.mark.parametrize("leaf", ["jax", "numpy"])
def test_buffers_may_be_reused_at_once(tmp_path, leaf):
    """A save races with a step that overwrites its donated input; 8 devices, 16 MiB an array."""
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    start = np.random.default_rng(0).normal(size=(1 << 9, 1 << 13)).astype(np.float32)
    specs = {"sharded": P("data", "model"), "replicated": P(), "rows": P("data")}
    state = {name: jax.device_put(start, NamedSharding(mesh, spec)) for name, spec in specs.items()}
    if leaf == "numpy":
        state = {name: start.copy() for name in specs}

    @functools.partial(jax.jit, donate_argnums=0)
    def overwrite(state):
        return jax.tree.map(lambda x: x * 0 - 1, state)

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": state})
        if leaf == "numpy":
            for value in state.values():
                value[:] = -1
        else:
            for _ in range(4):
                state = overwrite(state)
            jax.block_until_ready(state)
        checkpoints.wait()
        found = checkpoints.restore(1, {"params": like(state)}).arrays["params"]
    for name in specs:
        np.testing.assert_array_equal(found[name], start, err_msg=name)


def test_restore_onto_other_meshes(tmp_path):
    values = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)
    old = jax.make_mesh((4, 2), ("data", "model"))
    saved = {
        "w": jax.device_put(values, NamedSharding(old, P("data", "model"))),
        "b": jax.device_put(values[0], NamedSharding(old, P("model"))),
    }
    targets = [
        (jax.make_mesh((2, 4), ("data", "model")), P("data", "model"), P("model")),
        (jax.make_mesh((8,), ("model",)), P(None, "model"), P()),
        (jax.sharding.Mesh(jax.devices()[:1], ("x",)), P(), P()),
        (jax.sharding.Mesh(np.array(jax.devices()[5:7]), ("x",)), P("x"), P("x")),
    ]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": saved})
        checkpoints.wait()
        for mesh, spec_w, spec_b in targets:
            wanted = {
                "w": jax.ShapeDtypeStruct(
                    (16, 8), np.float32, sharding=NamedSharding(mesh, spec_w)
                ),
                "b": jax.ShapeDtypeStruct((8,), np.float32, sharding=NamedSharding(mesh, spec_b)),
            }
            found = checkpoints.restore(1, {"params": wanted}).arrays["params"]
            for name in wanted:
                assert found[name].sharding == wanted[name].sharding
            np.testing.assert_array_equal(found["w"], values)
            np.testing.assert_array_equal(found["b"], values[0])


def test_partial_restore_reads_only_its_item(saved):
    saved.wait()
    for file in (saved.directory / "step_00000030" / "arrays" / "optimizer").rglob("*"):
        if file.is_file():
            file.unlink()
    restored = saved.restore(30, {"params": like(tree())["params"]})
    assert_same(restored.arrays, {"params": tree(30)["params"]})
    assert saved.restore(30, {}).records == {"step": 30}


def test_some_modules_of_an_item_on_request_only(saved):
    saved.wait()
    params = like(tree())["params"]
    some = {"blocks": [params["blocks"][0]], "scale": params["scale"]}
    found = saved.restore(30, {"params": some}, partial=True).arrays["params"]
    expected = tree(30)["params"]
    assert_same(found, {"blocks": expected["blocks"][:1], "scale": expected["scale"]})
    assert "found a leaf that is not asked for" in error_of(saved.restore, 30, {"params": some})
    more = {"head": params["embed"]}
    assert "leaf head: found no such leaf" in error_of(
        saved.restore, 30, {"params": more}, partial=True
    )
    assert saved.restore(30, {"params": {}}, partial=True).arrays == {"params": {}}


def test_orbax_alone_reads_an_item(saved):
    import orbax.checkpoint as ocp

    saved.wait()
    step = saved.directory / "step_00000030"
    as_numpy: dict = {"embed": ocp.RestoreArgs(np.ndarray), "scale": ocp.RestoreArgs(np.ndarray)}
    as_numpy["blocks"] = {k: {"w": ocp.RestoreArgs(np.ndarray)} for k in ("0", "1")}
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.restore(step / "arrays" / "params", restore_args=as_numpy)
    expected = tree(30)["params"]
    np.testing.assert_array_equal(found["embed"], expected["embed"])
    np.testing.assert_array_equal(found["blocks"]["1"]["w"], expected["blocks"][1]["w"])


def test_params_readable_by_a_process_that_knows_no_classes(saved):
    saved.wait()
    step = saved.directory / "step_00000020"
    program = (
        "import sys, numpy as np; from pathlib import Path\n"
        "from ziggurat.checkpoint import read_arrays, read_records, verify_step\n"
        "step = Path(sys.argv[1]); verify_step(step)\n"
        "params = read_arrays(step, 'params'); moments = read_arrays(step, 'optimizer')\n"
        "print(sorted(params), params['blocks']['1']['w'].dtype, float(params['embed'][1, 0]))\n"
        "print(sorted(moments), int(moments['nu']['0']), moments['nu']['1'].shape)\n"
        "print(read_records(step), 'flax' in sys.modules, 'optax' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(step)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "['blocks', 'embed', 'scale'] bfloat16 320.0",
        "['mu', 'nu'] 7 (0, 3)",
        "{'step': 20} False False",
    ]


def test_leftovers_are_swept_but_not_those_of_a_living_writer(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_lock, "PATIENCE_S", 0.1)
    left = tmp_path / f"step_00000003{atomic.TEMPORARY}writing"
    left.mkdir(parents=True)
    theirs = tmp_path / "thesis.tmp-draft"
    theirs.mkdir()
    with Checkpoints(tmp_path) as writer:
        assert left.exists(), "opening writes nothing"
        writer.claim()
        assert not left.exists()
        assert theirs.exists(), "only names that a writer gives are swept"
        writer.save(1, {"params": {"w": np.ones(2)}})
        left.mkdir()
        with Checkpoints(tmp_path) as reader:
            assert left.exists()
            writer.wait()
            assert reader.restore(None, {"params": {"w": np.ones(2)}}).step == 1
            assert "another process that saves here" in error_of(reader.save, 3, {})
        assert left.exists()
        left.rmdir()
        writer.save(3, {"params": {"w": np.ones(2)}})
    with Checkpoints(tmp_path) as after:
        after.save(4, {"params": {"w": np.ones(2)}})
        after.wait()
        assert [info.step for info in after.steps()] == [3, 4]


def test_error_lines_of_restore(saved, tmp_path):
    saved.wait()
    good = like(tree())
    assert "no such directory" in error_of(Checkpoints(tmp_path / "none").restore, None, {})
    (tmp_path / "empty").mkdir()
    assert "no step directory" in error_of(Checkpoints(tmp_path / "empty").restore, None, {})
    text = error_of(saved.restore, 31, good)
    assert "found no such step; expected one of 10, 20, 30" in text
    text = error_of(saved.restore, 30, {"params0": good["params"]})
    assert "item params0: found no such item" in text
    assert "did you mean params?" in text

    renamed = dict(good["params"])
    renamed["embed2"] = renamed.pop("embed")
    text = error_of(saved.restore, None, {"params": renamed})
    assert "leaf embed2: found no such leaf" in text
    assert "did you mean embed?" in text
    fewer = {key: value for key, value in good["params"].items() if key != "embed"}
    assert "leaf embed: found a leaf that is not asked for" in error_of(
        saved.restore, None, {"params": fewer}
    )
    other = good["params"] | {"embed": jax.ShapeDtypeStruct((8, 17), np.float32)}
    assert "leaf embed: found shape (8, 16); expected (8, 17)" in error_of(
        saved.restore, None, {"params": other}
    )
    other = good["params"] | {"embed": 3}
    assert "leaf embed: found int" in error_of(saved.restore, None, {"params": other})
    assert "manifest.json: found no such file" in error_of(
        read_arrays, tmp_path / "empty", "params"
    )
    assert "did you mean optimizer?" in error_of(
        read_arrays, saved.directory / "step_00000030", "optimiser"
    )


def test_cast_on_request_only(saved):
    saved.wait()
    params = like(tree())["params"]
    narrow = params | {"embed": jax.ShapeDtypeStruct((8, 16), jnp.bfloat16)}
    text = error_of(saved.restore, 30, {"params": narrow})
    assert "found type float32; expected bfloat16; pass cast=True" in text
    mesh = jax.make_mesh((8,), ("x",))
    sharding = NamedSharding(mesh, P("x"))
    for target in (
        narrow,
        params | {"embed": jax.ShapeDtypeStruct((8, 16), jnp.bfloat16, sharding=sharding)},
    ):
        found = saved.restore(30, {"params": target}, cast=True).arrays["params"]["embed"]
        expected = np.asarray(tree(30)["params"]["embed"]).astype(ml_dtypes.bfloat16)
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(found), expected)
    whole = params | {"embed": jax.ShapeDtypeStruct((8, 16), jnp.int32)}
    assert "these types do not convert" in error_of(saved.restore, 30, {"params": whole}, cast=True)


@pytest.mark.parametrize(
    ("arrays", "records", "files", "part"),
    [
        ({"a/b": {}}, {}, {}, "checkpoint item 'a/b'"),
        (
            {"p": {"a": {"n": 3.0}}},
            {},
            {},
            "leaf a.n: found a float; expected a jax or numpy array",
        ),
        ({"p": {"a.b": np.ones(1), "a": {"b": np.ones(1)}}}, {}, {}, "leaf a.b: found two leaves"),
        ({"p": {"u": np.ones(2, ml_dtypes.uint4)}}, {}, {}, "leaf u: found type uint4"),
        ({"p": {"s": np.array(["x"])}}, {}, {}, "leaf s: found type <U1"),
        ({}, {"a": {"b": (1, 2)}}, {}, "records.a.b: found (1, 2) (tuple)"),
        ({}, {"a": [1.0, float("nan")]}, {}, "records.a.1: found nan (float)"),
        ({}, {"a": np.int64(3)}, {}, "records.a: found"),
        ({}, {"a": {3: 4}}, {}, "records.a: found key 3"),
        ({}, {}, {"manifest.json": b""}, "'manifest.json': found a reserved name"),
        ({}, {}, {"arrays/x": b""}, "found a reserved name"),
        ({}, {}, {"../x": b""}, "outside the step directory"),
        ({}, {}, {"/x": b""}, "outside the step directory"),
        ({}, {}, {"x": Path("no-such-file")}, "found no file at no-such-file"),
    ],
)
def test_what_cannot_be_saved_is_named_and_leaves_nothing(tmp_path, arrays, records, files, part):
    with Checkpoints(tmp_path) as checkpoints:
        text = error_of(checkpoints.save, 1, arrays, records, files)
        assert part in text, text
        assert [entry.name for entry in tmp_path.iterdir()] == []
        checkpoints.save(1, {"p": {"w": np.ones(2)}})
        checkpoints.wait()
        assert "found an intact checkpoint of this step" in error_of(checkpoints.save, 1, {})
        assert "expected 0 or more" in error_of(checkpoints.save, -1, {})


def test_synchronous_saves_are_there_on_return(tmp_path):
    with Checkpoints(tmp_path, CheckpointConfig(asynchronous=False)) as checkpoints:
        report = checkpoints.save(1, tree())
        assert (tmp_path / "step_00000001").is_dir()
        assert report.total_s is not None
        assert report.blocking_s >= report.total_s


def test_read_only_users_need_no_write_permission(saved, monkeypatch):
    saved.wait()

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(writer_lock.os, "open", refuse)
    reader = Checkpoints(saved.directory)
    assert reader.restore(None, like(tree())).step == 30
    reader.config = CheckpointConfig(retries=0)
    reader.save(40, {})
    assert "Permission denied" in error_of(reader.wait)


def test_config_and_interval(tmp_path):
    settings = config.parse(CheckpointConfig, "every = 5\nkeep_every = 10").value
    assert settings == CheckpointConfig(every=5, keep_every=10)
    checkpoints = Checkpoints(tmp_path, settings)
    assert [step for step in range(12) if checkpoints.due(step)] == [5, 10]
    for text in ("every = 0", "keep_last = 0", "keep_every = 0"):
        with pytest.raises(ConfigError, match="expected at least 1"):
            config.parse(CheckpointConfig, text)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.every = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_importing_the_config_imports_no_jax():
    program = (
        "import sys; from ziggurat.checkpoint import CheckpointConfig; print('jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_weird_names_and_a_bare_array(tmp_path):
    values = {"": np.ones(1), "x/y": np.zeros(2), "ü n": {"a.b": np.arange(3)}, "0": [np.ones(2)]}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": values, "bare": np.arange(4), "none": {}})
        checkpoints.wait()
        found = checkpoints.restore(1, {"params": values, "bare": np.arange(4), "none": {}})
    assert_same(found.arrays, {"params": values, "bare": np.arange(4), "none": {}})
    step = tmp_path / "step_00000001"
    np.testing.assert_array_equal(read_arrays(step, "bare"), np.arange(4))
    assert read_arrays(step, "none") == {}
    assert read_records(step) == {}
