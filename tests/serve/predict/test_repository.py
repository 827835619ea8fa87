"""The repository: versions and policies, reloads that lose nothing, names that lead nowhere."""

import asyncio
import shutil
import threading

import numpy as np
import pytest
from tests.serve.predict.conftest import SETTINGS

from ziggurat.core.errors import ServeError, ZigguratError
from ziggurat.serve.errors import UnknownModel
from ziggurat.serve.predict import PredictConfig, Repository
from ziggurat.serve.predict.batching import BatchScheduler
from ziggurat.serve.predict.repository import is_repository

ONE = {"x": np.ones((1, 16), np.float32)}
ROWS = "[batching]\nmax_batch_size = 1\n"


@pytest.fixture
def scheduler():
    with BatchScheduler() as made:
        yield made


@pytest.fixture
def root(copied):
    """The model of two versions alone."""
    for name in ("encoder", "echo"):
        shutil.rmtree(copied / name)
    return copied


def configure(root, text):
    (root / "digits" / "model.toml").write_text(text + ROWS)


def served(repository):
    return [version.number for version in repository.serving("digits")]


@pytest.mark.parametrize(
    ("policy", "numbers"),
    [
        ("", [2]),
        ('versions = {kind = "latest", n = 2}', [1, 2]),
        ('versions = {kind = "all"}', [1, 2]),
        ('versions = {kind = "specific", versions = [1]}', [1]),
    ],
)
def test_policies(root, scheduler, policy, numbers):
    configure(root, policy + "\n")
    repository = Repository(root, scheduler)
    repository.load_all()
    assert served(repository) == numbers
    assert repository.get("digits").number == numbers[-1]
    states = {entry.version: entry.state for entry in repository.index()}
    assert states == {str(n): "READY" if n in numbers else "UNAVAILABLE" for n in (1, 2)}
    assert len(repository.index(ready=True)) == len(numbers)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'versions = {kind = "specific", versions = [7]}\n',
            "digits/7: found manifest.json: No",
        ),
        ('versions = {kind = "newest"}\n', "versions.kind: found 'newest', expected one of latest"),
        ("version = 1\n", "version: unknown key, did you mean versions?"),
        ("[batching]\nmax_batch_size = 0\n", "max_batch_size: found 0, expected 1 to 65536"),
        ("[batching]\nbatch_sizes = [4, 2]\n", "batch_sizes: found [4, 2], expected rising"),
        ("[batching]\nbatch_sizes = [2]\n", "expected max_batch_size, 32, as the last"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(root, scheduler, text, said):
    (root / "digits" / "model.toml").write_text(text)
    repository = Repository(root, scheduler)
    failed = repository.load_all()
    assert said in failed["digits"]
    assert "\n" not in failed["digits"]
    assert not repository.serving()
    reasons = {entry.reason for entry in repository.index() if entry.name == "digits"}
    assert any(said in reason for reason in reasons)
    with pytest.raises(ZigguratError) as caught:
        repository.load("digits")
    assert str(caught.value) == failed["digits"]


def test_damaged_models_and_stray_directories_leave_the_others_serving(copied, scheduler):
    """Every way in which one model's directory can be wrong; the others are found as they were."""
    (copied / "digits" / "model.toml").write_text("not = toml = at all")
    (copied / "encoder" / "1" / "program").write_bytes(b"nothing")
    (copied / ".cache").mkdir()
    (copied / "notes").mkdir()
    (copied / "notes" / "README").write_text("stray")
    (copied / "half").mkdir()
    (copied / "half" / "1").mkdir()
    (copied / "half" / "1" / "manifest.json").mkdir()
    (copied / "empty").mkdir()
    (copied / "empty" / "1").mkdir()
    (copied / "file").write_text("stray")
    (copied / "gone").symlink_to(copied / "nowhere")
    repository = Repository(copied, scheduler)
    failed = repository.load_all()
    assert {v.model for v in repository.serving()} == {"echo"}
    assert set(failed) == {"digits", "encoder", "half", "empty"}
    listed = {entry.name: entry.reason for entry in repository.index() if entry.state != "READY"}
    assert set(listed) == set(failed)
    assert all(listed[name] == failed[name] for name in ("digits", "encoder", "empty"))


def test_a_model_asked_for_by_name_must_be_there(root, scheduler):
    with pytest.raises(UnknownModel):
        Repository(root, scheduler, PredictConfig(load=("digitz",))).load_all()
    repository = Repository(root, scheduler, PredictConfig(load=("digits", "*")))
    assert repository.load_all() == {}


def test_a_slow_load_does_not_hold_up_another(copied, scheduler, monkeypatch):
    from ziggurat.serve.predict.repository import LoadedBundle

    entered, go_on, real = threading.Event(), threading.Event(), LoadedBundle.load

    def slow(path, *args, **kwargs):
        if "digits" in str(path):
            entered.set()
            assert go_on.wait(30)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(LoadedBundle, "load", slow)
    repository = Repository(copied, scheduler)
    thread = threading.Thread(target=repository.load, args=("digits",))
    thread.start()
    assert entered.wait(30)
    repository.load("echo")
    assert [v.model for v in repository.serving()] == ["echo"]
    go_on.set()
    thread.join(60)
    assert {v.model for v in repository.serving()} == {"echo", "digits"}


def test_a_failed_reload_keeps_the_old_version_serving(root, scheduler):
    configure(root, 'versions = {kind = "latest"}\n')
    repository = Repository(root, scheduler)
    repository.load_all()
    before = repository.get("digits")
    shutil.copytree(root / "digits" / "2", root / "digits" / "3")
    program = root / "digits" / "3" / "program"
    whole = program.read_bytes()
    program.write_bytes(whole[:-1] + b"!")
    with pytest.raises(ServeError, match="digits/3: program: found SHA-256"):
        repository.load("digits")
    assert repository.get("digits") is before
    assert asyncio.run(before.queue.infer(ONE))[1].shape == (1,)
    reasons = {entry.version: entry.reason for entry in repository.index()}
    assert "program: found SHA-256" in reasons["3"]
    program.write_bytes(whole)
    repository.load("digits")
    assert served(repository) == [3]
    assert repository.index(ready=True)[0].reason == ""


def test_a_reload_of_the_same_bytes_changes_nothing_and_back_is_a_rollback(root, scheduler):
    configure(root, 'versions = {kind = "latest"}\n')
    repository = Repository(root, scheduler)
    repository.load("digits")
    before = repository.get("digits")
    repository.load("digits")
    assert repository.get("digits") is before
    configure(root, 'versions = {kind = "specific", versions = [1]}\n')
    repository.load("digits")
    assert served(repository) == [1]
    repository.unload("digits")
    with pytest.raises(UnknownModel, match="a model, but none is loaded"):
        repository.get("digits")
    with pytest.raises(UnknownModel):
        repository.unload("digits")


def test_requests_under_way_survive_a_reload(root, scheduler):
    configure(root, 'versions = {kind = "latest"}\n')
    repository = Repository(root, scheduler)
    repository.load("digits")
    shutil.copytree(root / "digits" / "1", root / "digits" / "3")
    failures, stop = [], threading.Event()

    async def ask():
        while not stop.is_set():
            version = repository.get("digits")
            await asyncio.sleep(0.01)  # as if its body were still coming
            try:
                await version.queue.infer(ONE)
            except ServeError as error:
                failures.append(error)

    thread = threading.Thread(target=asyncio.run, args=(ask(),))
    thread.start()
    repository.load("digits")
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert failures == []
    assert served(repository) == [3]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../models", "/etc", "digits/1", "a\\b", "a\0b", "%2e%2e", "-x", "a" * 99 * 2],
)
def test_names_do_not_lead_out(root, scheduler, name):
    with pytest.raises(UnknownModel) as caught:
        Repository(root, scheduler).load(name)
    assert len(str(caught.value)) < 200


def test_what_is_a_repository(made, tmp_path):
    assert is_repository(made)
    assert is_repository(tmp_path)
    assert not is_repository(made / "digits" / "1")
    assert not is_repository(made / "nothing")
    with BatchScheduler() as scheduler, pytest.raises(ServeError, match="no such directory"):
        Repository(tmp_path / "nothing", scheduler)


def test_two_devices_answer_alike(root):
    (root / "digits" / "model.toml").write_text(SETTINGS.replace("= 8", "= 2"))
    with BatchScheduler(2) as scheduler:
        repository = Repository(root, scheduler, PredictConfig(devices=2))
        repository.load_all()
        version = repository.get("digits")
        used = [program.device.id for program in version.bundle.programs]
        assert used == [0, 1]

        async def ask():
            return await asyncio.gather(*(version.queue.infer(ONE) for _ in range(20)))

        answers = asyncio.run(ask())
        for probabilities, _ in answers:  # batches of one and two are different programs
            np.testing.assert_allclose(probabilities, answers[0][0], 1e-5, 1e-6)
        assert version.statistics.inference_count == 20
