"""Snapshots in memory: with real keepers, real kills, and every byte compared."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tests.compilation import QUICK

from ziggurat.checkpoint import DamagedError
from ziggurat.checkpoint.config import MemoryTier
from ziggurat.checkpoint.memory import frames, peer, rendezvous, snapshot
from ziggurat.checkpoint.memory.tier import MemorySnapshots
from ziggurat.core.errors import CheckpointError
from ziggurat.mesh import Processes

LASTING = MemoryTier(linger_s=60.0)


def opened(tmp_path, identity="run", config=LASTING) -> MemorySnapshots:
    return MemorySnapshots(tmp_path / "checkpoints", config, identity, Processes())


def numbers(step):
    values = np.arange(8 * 16, dtype=np.float32).reshape(8, 16) + step
    return {"params": {"w": values, "b": [jnp.asarray(values[0], jnp.bfloat16)]}}


def like(tree):
    def struct(leaf):
        if isinstance(leaf, np.ndarray):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(struct, tree)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        assert isinstance(one, jax.Array) == isinstance(other, jax.Array)
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def gone(directory: Path) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not list(directory.iterdir()):
            return True
        time.sleep(0.02)
    return False


def test_a_new_trainer_goes_on_from_memory(tmp_path, private):
    first = opened(tmp_path)
    assert first.steps == []
    for step in (1, 2, 3):
        tree = numbers(step)
        assert first.save(step, tree, {"step": step})
        tree["params"]["w"][:] = -1  # the caller may change its arrays at once
    first.close(finished=False)
    assert not (tmp_path / "checkpoints").exists()  # no disk
    second = opened(tmp_path)
    assert second.steps == [2, 3]
    restored = {step: second.restore(step, like(numbers(0))) for step in (3, 2)}
    for step in (4, 5):  # overwrites both slots
        second.save(step, numbers(step), {"step": step})
    second.wait()
    restored[3][0]["params"]["w"] += 1  # the caller's own
    restored[3][0]["params"]["w"] -= 1
    for step, (arrays, records) in restored.items():
        assert records == {"step": step}
        assert_same(arrays, numbers(step))
    assert second.steps == [4, 5]
    donated, _ = second.restore(5, like(numbers(0)))
    jax.jit(lambda x: x * 0, donate_argnums=0)(donated["params"]["b"][0]).block_until_ready()
    assert_same(second.restore(5, like(numbers(0)))[0], numbers(5))
    assert second.discard_after(4) == [5]
    second.refresh()
    assert second.steps == [4]
    second.save(5, numbers(50), {})
    second.wait()
    assert_same(second.restore(5, like(numbers(0)))[0], numbers(50))
    second.save(2, numbers(20), {})  # back to an older course: what it left is forgotten
    second.refresh()
    assert second.steps == [2]
    second.close(finished=True)
    assert list(private.iterdir()) == []


def test_every_sharding_and_type(tmp_path, private):
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    by_rows, by_both = NamedSharding(mesh, P("x")), NamedSharding(mesh, P("y", "x"))
    everywhere = NamedSharding(mesh, P())
    values = np.arange(64, dtype=np.float32).reshape(8, 8)
    tree = {
        "rows": jax.device_put(values, by_rows),
        "whole": jax.device_put(values.astype(jnp.bfloat16), everywhere),
        "scalar": jax.device_put(jnp.int32(7), everywhere),
        "empty": np.zeros((0, 3), np.float32),
        "small": jax.device_put(jnp.asarray(values, jnp.int4), by_rows),
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), 2),
        "flags": np.array([True, False]),
    }
    kept = opened(tmp_path)
    kept.save(1, {"state": tree}, {})
    kept.wait()
    assert kept.error is None
    arrays, _ = kept.restore(1, like({"state": tree}))
    assert_same(arrays["state"], tree)
    assert arrays["state"]["rows"].sharding == by_rows
    other = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        for name, leaf, sharding in (
            ("rows", tree["rows"], by_both),
            ("whole", tree["whole"], by_both),
            ("small", tree["small"], everywhere),
        )
    }
    wanted = {**tree, **other}
    arrays, _ = kept.restore(1, {"state": like(wanted)})  # another mesh: put together anew
    assert_same(arrays["state"], tree)
    assert arrays["state"]["rows"].sharding == by_both
    wanted = {**tree, "rows": np.zeros((8, 8), np.float32)}
    assert isinstance(kept.restore(1, {"state": like(wanted)})[0]["state"]["rows"], np.ndarray)
    wanted = {**tree, "rows": np.zeros((8, 4), np.float32)}
    with pytest.raises(CheckpointError, match=r"leaf rows: found shape \(8, 8\)"):
        kept.restore(1, {"state": like(wanted)})
    rows = {"rows": np.zeros((8, 8), np.float64)}
    arrays, _ = kept.restore(1, {"state": rows}, cast=True, partial=True)
    np.testing.assert_array_equal(arrays["state"]["rows"], values, strict=False)
    assert arrays["state"]["rows"].dtype == np.float64
    with pytest.raises(CheckpointError, match=r"leaf .* found a leaf that is not asked"):
        kept.restore(1, {"state": {"rows": wanted["rows"]}})
    with pytest.raises(CheckpointError, match="plain values into records"):
        kept.save(2, {"state": {"rows": 3}}, {})
    with pytest.raises(CheckpointError, match="records"):
        kept.save(2, {"state": tree}, {"pair": (1, 2)})
    kept.close(finished=True)


def test_another_run_is_never_taken_for_this_one(tmp_path, private):
    first = opened(tmp_path, "first")
    first.save(7, numbers(7), {})
    first.close(finished=False)
    assert opened(tmp_path, "second").steps == []  # and what the first left is dropped
    assert opened(tmp_path, "first").steps == []


def test_damage_is_found_and_named(tmp_path, private):
    kept = opened(tmp_path)
    kept.save(1, numbers(1), {})
    kept.wait()
    assert kept._link is not None
    _, content = kept._link.ask("read", owner=0, step=1)
    assert content is not None
    content[77] ^= 1
    with pytest.raises(DamagedError, match=r"snapshot of step 1 .* in params\."):
        kept.restore(1, like(numbers(0)))
    kept.close(finished=True)


def test_snapshots_end_when_they_lingered(tmp_path, private):
    kept = opened(tmp_path, config=MemoryTier(linger_s=0.3))
    kept.save(1, numbers(1), {})
    kept.wait()
    time.sleep(0.8)  # a trainer that lives is not gone
    assert Path(f"/proc/{kept.keeper}").exists()
    kept.close(finished=False)
    assert gone(private)
    assert opened(tmp_path).steps == []


def test_a_killed_keeper_is_replaced_and_swept(tmp_path, private):
    kept = opened(tmp_path)
    kept.save(1, numbers(1), {})
    kept.wait()
    assert kept.keeper is not None
    first = kept.keeper
    os.kill(first, signal.SIGKILL)
    kept.save(2, numbers(2), {})
    kept.wait()
    assert kept.error is None
    assert kept.keeper != first
    os.kill(kept.keeper, signal.SIGKILL)
    kept.close(finished=False)
    assert {path.suffix for path in private.iterdir()} == {".sock", ".lock", ".log"}
    assert opened(tmp_path).steps == []
    other = MemorySnapshots(tmp_path / "other", LASTING, "run", Processes())
    other.save(1, numbers(1), {})
    other.close(finished=True)
    assert list(private.iterdir()) == []


def test_what_keepers_refuse(tmp_path, private, monkeypatch):
    kept = opened(tmp_path)
    kept.save(1, numbers(1), {})
    kept.wait()
    assert kept._link is not None
    with pytest.raises(peer.KeptError, match=r"MemoryError: .* wanted"):
        kept._link.ask("begin", owner=0, size=1 << 50, step=2, keep=1)
    with pytest.raises(peer.KeptError, match="no such request"):
        kept._link.ask("sing")
    with pytest.raises(peer.KeptError, match="another run"):
        kept._link.ask("commit", owner=3, slot=1, header={"identity": "x", "count": 1})
    monkeypatch.setattr(peer, "CONNECT_S", 0.2)
    assert opened(tmp_path).steps == []  # another trainer lives: not for this one
    kept.refresh()
    assert kept.steps == [1]
    # Over TCP nothing is answered without the token, and only what is for peers with it.
    answer, _ = kept._link.ask(
        "hello", identity=kept.identity, count=1, linger_s=9, host="127.0.0.1"
    )
    address = peer.Address("here", "127.0.0.1", answer["port"], answer["token"])
    link = peer.reach(address)
    assert link.ask("list")[0] == {"parts": [[0, 1]]}
    _, content = link.ask("read", owner=0, step=1)
    assert content == kept._link.ask("read", owner=0, step=1)[1][: len(content)]  # pyright: ignore
    with pytest.raises(peer.KeptError, match="no such request"):
        link.ask("begin", owner=0, size=1, step=1)
    with pytest.raises(peer.KeptError):
        peer.reach(peer.Address("here", "127.0.0.1", address.port, "guess")).ask("list")
    with socket.create_connection(("127.0.0.1", answer["port"])) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n".ljust(64))
        stranger.settimeout(20)
        with contextlib.suppress(ConnectionError):
            assert stranger.recv(100) == b""
    header = kept._link.ask("read", owner=0, step=1)[0]["header"]
    wrong = memoryview(bytes(header["bytes"]))
    with pytest.raises(peer.KeptError, match="differs from its digests"):
        link.ask("put", wrong, owner=0, header={**header, "step": 2})
    kept.close(finished=True)


def test_a_directory_open_to_others_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"ziggurat-{os.getuid()}").mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="only this user"):
        rendezvous.private_directory()
    kept = opened(tmp_path)  # training continues
    kept.save(1, numbers(1), {})
    kept.wait()
    assert "only this user" in str(kept.error)
    kept.close(finished=True)


def test_own_host():
    assert peer.own_host(["a", "a"], None) == "127.0.0.1"
    assert peer.own_host(["a", "b"], "localhost:80") is None
    assert peer.own_host(["a", "b"], None) is None


def test_blocks_have_their_own_digests():
    content = bytearray(random.Random(1).randbytes(2 * frames.BLOCK + 5))
    before = frames.block_digests(content)
    content[frames.BLOCK] ^= 1
    changed = [a != b for a, b in zip(before, frames.block_digests(content), strict=True)]
    assert changed == [False, True, False]
    tree = {"a": np.zeros(frames.BLOCK, np.uint8), "b": np.zeros(9, np.uint8)}
    header, sources = snapshot.describe({"x": tree}, {})
    view = memoryview(bytearray(header["bytes"]))
    snapshot.copy_into(view, sources)
    header |= {"blocks": frames.block_digests(view), "step": 1}
    view[frames.BLOCK] ^= 1
    with pytest.raises(DamagedError, match=r"in x\.b;"):
        snapshot.check(header, view)


TRAINERS = """
import os, random, signal, sys, time
from pathlib import Path
import jax, numpy as np
from ziggurat.checkpoint.config import MemoryTier
from ziggurat.checkpoint.memory.tier import MemorySnapshots
from ziggurat.mesh import Processes

directory, moments = Path(sys.argv[1]), random.Random(7)

base = np.random.default_rng(1).random((4, 1 << 20), np.float32)

def tree(step):
    return {"params": {f"w{i}": base[i] + np.float32(step) for i in range(4)}}

def trainer(out):
    kept = MemorySnapshots(directory, MemoryTier(linger_s=60), "run", Processes())
    start = kept.steps[-1] if kept.steps else 0
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=sharding), tree(0))
    for step in kept.steps:
        arrays, records = kept.restore(step, like)
        assert records == {"step": step}
        for name, leaf in arrays["params"].items():
            expected = tree(step)["params"][name]
            assert np.asarray(leaf).tobytes() == expected.tobytes(), (step, name)
    os.write(out, b"%d %d\\n" % (start, len(kept.steps)))
    if attempt % 5 == 1 and not os.fork():  # a child has the trainer's connection and outlives it
        for descriptor in (out, 1, 2):
            os.close(descriptor)
        time.sleep(8)
        os._exit(0)
    step = start
    while True:
        step += 1
        kept.save(step, jax.device_put(tree(step)), {"step": step})
        os.write(out, b"%d\\n" % step)

for attempt in range(int(sys.argv[2])):  # forks: each one imports nothing and starts JAX anew
    back, out = os.pipe()
    child = os.fork()
    if not child:
        os.close(back)
        try:
            trainer(out)
        except BaseException as error:
            os.write(out, b"error " + repr(error).encode() + b"\\n")
        os._exit(1)
    os.close(out)
    with os.fdopen(back) as lines:
        said = [lines.readline().strip()]
        for _ in range(attempt and moments.randint(0, 6)):
            said.append(lines.readline().strip())
        time.sleep(moments.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        print(*said, *lines.read().split(), flush=True)
    os.waitpid(child, 0)
"""


@pytest.mark.chaos
def test_trainers_killed_at_any_moment(tmp_path, private):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRAINERS, str(tmp_path / "run"), "21"],
        env={**os.environ, "TMPDIR": str(tmp_path), "XLA_FLAGS": QUICK},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lives = [line.split() for line in done.stdout.splitlines()]
    assert len(lives) == 21, done.stdout + done.stderr
    print(*lives, sep="\n")
    begun, whole = 0, 0
    for start, count, *saved in lives:
        assert start != "error", lives
        # Save k returns when snapshot k - 1 is whole.
        assert whole <= int(start) <= begun + 1, lives
        assert int(count) >= min(1, whole), lives
        whole = int(saved[-1]) - 1 if saved else int(start)
        begun = int(saved[-1]) + 1 if saved else int(start) + 1
    assert whole >= 10, "hardly anything was saved: the test shows nothing"
    torn = [life for life in lives if int(life[0]) > 1 and life[1] == "1"]
    assert torn, "no kill came in the middle of a snapshot: the test shows nothing"


def test_the_newest_complete_snapshot_is_never_written_over(tmp_path, private):
    """Also where a newer one is here and never became complete on the other hosts."""
    link = peer.start_keeper(tmp_path / "checkpoints", 0)
    try:
        link.ask("hello", identity="run", count=2, linger_s=9.0)
        of_run = {"identity": "run", "count": 2, "process": 0, "bytes": 8}

        def snapshot_of(step, complete):
            answer, _ = link.ask("begin", owner=0, size=8, step=step, keep=complete)
            header = of_run | {"step": step, "blocks": []}
            link.ask("commit", owner=0, slot=answer["slot"], header=header)

        snapshot_of(5, None)
        for step in (6, 7, 8):  # the other host did not come along
            snapshot_of(step, 5)
            answer, _ = link.ask("list")
            assert [tuple(part) for part in answer["parts"]] == [(0, 5), (0, step)]
    finally:
        link.finish()
