"""Copies in a store: directories, memory, and S3 spoken with a real server."""

import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ziggurat.checkpoint import CheckpointConfig, Checkpoints, DamagedError, verify_step
from ziggurat.checkpoint.config import PersistentTier
from ziggurat.checkpoint.copies import Copies
from ziggurat.checkpoint.manifest import MANIFEST
from ziggurat.checkpoint.object_store import ObjectStore
from ziggurat.checkpoint.step_store import StoreError
from ziggurat.core.errors import CheckpointError, ZigguratError


class Server:
    """An S3 server that can be stopped and started again with what it holds."""

    def __init__(self):
        self.port = 0
        self.start()

    def start(self):
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self):
        self._server.stop()


@pytest.fixture(scope="module")
def server():
    import boto3

    running = Server()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{running.port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield running
    running.stop()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 1 to 5 on disk."""
    directory = tmp_path_factory.mktemp("run")
    with Checkpoints(directory, CheckpointConfig(keep_last=9)) as checkpoints:
        for step in range(1, 6):
            arrays = {"params": {"w": np.full((4, 4), step, np.float32)}}
            checkpoints.save(step, arrays, {"step": step}, {"run.toml": b"x", "tokenizer/a": b"y"})
    return lambda step: directory / f"step_{step:08d}"


@pytest.fixture(params=["directory", "memory", "s3"])
def url(request, tmp_path):
    if request.param == "directory":
        return str(tmp_path / "store" / "run")
    if request.param == "memory":
        return f"memory://{tmp_path.name}"
    request.getfixturevalue("server")
    return f"s3://bucket/runs/{tmp_path.name}"


def opened(url, **settings) -> Copies:
    config = PersistentTier(url=url, **settings)
    return Copies(ObjectStore(config), config, retries=1, retry_wait_s=0.01)


def inside(copies: Copies) -> Any:
    assert isinstance(copies.store, ObjectStore)
    return copies.store


def fetched(store, step, folder: Path) -> Path:
    folder.mkdir()
    assert store.download(step, folder).step == step
    return folder


def sent(store, step, path):
    store.send(step, path)
    store.wait()


def test_copies_come_back_whole(url, saved, tmp_path):
    store = opened(url, keep_last=1, keep_every=2)
    assert store.steps() == []
    for step in (1, 2, 3, 4, 5):
        sent(store, step, saved(step))
        assert store.error is None
    assert store.steps() == [2, 4, 5]
    again = opened(url)
    assert again.steps() == [2, 4, 5]
    copy = fetched(again, 4, tmp_path / "copy")
    files = {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()}
    for name in files:
        assert (copy / name).read_bytes() == (saved(4) / name).read_bytes()
    assert files == {p.relative_to(saved(4)) for p in saved(4).rglob("*") if p.is_file()}
    again.discard_after(2)
    assert again.steps() == [2]
    assert set(inside(again)._listing()) == {2}
    sent(again, 2, saved(2))  # there already
    assert again.error is None
    with pytest.raises(CheckpointError):
        fetched(again, 5, tmp_path / "none")


def test_a_copy_that_was_cut_off_goes_on(url, saved):
    store = opened(url)
    real, uploaded, before = inside(store)._files.put_file, [], []

    def cut_off(source, target):
        if target.endswith("run.toml"):
            raise OSError("cut off")
        real(source, target)
        before.append(target)

    inside(store)._files.put_file = cut_off
    try:
        sent(store, 3, saved(3))
        assert "cut off" in str(store.error)
        assert store.steps() == []
        inside(store)._files.put_file = lambda source, target: (
            uploaded.append(target) or real(source, target)
        )
        sent(store, 3, saved(3))
        assert store.error is None
        assert "run.toml" in [Path(name).name for name in uploaded]
        assert not set(before) & set(uploaded)
        assert len(before) + len(uploaded) == len(verify_step(saved(3)).files)
        # Another checkpoint of the same step shares nothing with what is there.
        inside(store)._files.put_file = cut_off
        sent(store, 4, saved(4))
        inside(store)._files.put_file = lambda source, target: (
            uploaded.append(target) or real(source, target)
        )
        uploaded.clear()
        sent(store, 4, saved(5))
        assert len(uploaded) == len(verify_step(saved(5)).files)
        inside(store)._files.put_file = cut_off
        sent(store, 1, saved(1))
    finally:
        inside(store)._files.put_file = real
    assert 1 in inside(store)._listing()
    sent(store, 5, saved(5))
    assert sorted(inside(store)._listing()) == [4, 5]  # halves are cleared away


def test_an_altered_copy_is_found(url, saved, tmp_path):
    store = opened(url)
    sent(store, 1, saved(1))
    name = inside(store)._at(1, "records.json")
    content = bytearray(inside(store)._files.cat_file(name))
    content[3] ^= 1
    inside(store)._files.pipe_file(name, bytes(content))
    with pytest.raises(DamagedError, match=r"records\.json"):
        fetched(store, 1, tmp_path / "copy")
    inside(store)._files.rm_file(name)
    with pytest.raises(DamagedError, match=r"records\.json"):
        fetched(store, 1, tmp_path / "other")
    inside(store)._files.pipe_file(inside(store)._at(1, MANIFEST), b"{")
    with pytest.raises(DamagedError):
        fetched(store, 1, tmp_path / "third")


def test_a_server_that_stops_and_comes_back(server, saved, tmp_path, caplog):
    store = opened(f"s3://bucket/{tmp_path.name}")
    real = inside(store)._files.put_file

    def stop(source, target):
        if target.endswith("run.toml"):
            server.stop()
            inside(store)._files.put_file = real
        real(source, target)

    inside(store)._files.put_file = stop
    with caplog.at_level(logging.ERROR, "ziggurat.checkpoint.copies"):
        sent(store, 1, saved(1))
        sent(store, 2, saved(2))
    ours = [record for record in caplog.records if record.name.startswith("ziggurat")]
    assert [record.levelname for record in ours] == ["ERROR"]  # said once
    assert isinstance(store.error, StoreError)
    with pytest.raises(StoreError, match="check the URL"):
        store.steps()
    store.discard_after(1)
    server.start()
    sent(store, 3, saved(3))
    assert store.error is None
    assert store.steps() == [3]


def test_the_newest_waiting_copy_wins(saved, tmp_path, caplog):
    store, gate = opened(str(tmp_path / "store")), threading.Event()
    store.send(1, saved(1), gate.wait)
    while store._waiting is not None:
        pass
    store.send(2, saved(2))
    store.send(3, saved(3))
    gate.set()
    store.wait()
    assert store.copied == [1, 3]
    assert "step 2 is not copied" in caplog.text
    store.send(4, saved(4), lambda: False)  # the save to disk failed
    store.wait()
    assert store.copied == [1, 3]
    assert store.error is None


def test_what_waits_is_kept_on_disk(tmp_path):
    store, gate = opened(str(tmp_path / "store")), threading.Event()
    with Checkpoints(tmp_path / "run", CheckpointConfig(keep_last=1)) as checkpoints:
        for step in range(1, 6):
            store.hold()
            checkpoints.save(step, {"w": np.zeros(step)})
            checkpoints.wait()
            if step < 3:
                path = checkpoints.steps()[-1].path
                store.send(step, path, gate.wait)
                while store._waiting is not None and step == 1:
                    pass
        assert [info.step for info in checkpoints.steps()] == [1, 2, 5]
        gate.set()
        store.wait()
        assert store.copied == [1, 2]
        checkpoints.save(6, {"w": np.zeros(6)})
        checkpoints.wait()
        assert [info.step for info in checkpoints.steps()] == [6]


def test_a_damaged_step_is_not_copied(saved, tmp_path):
    path = tmp_path / "step_00000001"
    shutil.copytree(saved(1), path)
    (path / "run.toml").write_bytes(b"y")
    store = opened(str(tmp_path / "store"))
    sent(store, 1, path)
    assert isinstance(store.error, DamagedError)
    assert store.steps() == []


def test_urls_that_do_not_work():
    with pytest.raises(ZigguratError, match=r"checkpoint\.persistent\.url"):
        opened("nosuch://x")


def test_what_is_removed_stops_being_a_checkpoint_first(url, saved):
    """A removal that ends midway leaves no manifest without its files."""
    store = opened(url)
    sent(store, 1, saved(1))
    sent(store, 2, saved(2))
    real, removed = inside(store)._files.rm_file, []
    inside(store)._files.rm_file = lambda path: (removed.append(Path(path).name), real(path))
    try:
        store.discard_after(1)
    finally:
        inside(store)._files.rm_file = real
    assert removed[0] == MANIFEST
    assert len(removed) > 1
    assert store.steps() == [1]
