"""Repositories of the hub: from the cache without a network, by download with one, or one line."""

import pytest
from tests.hub import COMMIT, lay_out, loopback_hub

from ziggurat.core import hub
from ziggurat.core.errors import DataError, ModelError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and nothing that answers."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


@pytest.fixture
def source(tmp_path):
    made = tmp_path / "published"
    made.mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "tiny-q4.gguf"):
        (made / name).write_text(name)
    (made / "original").mkdir()
    (made / "original" / "model.safetensors").write_text("a second copy")
    return made


@pytest.fixture
def online(cache, source, monkeypatch):
    """The same repository behind a hub; the paths asked for."""
    with loopback_hub({"acme/tiny": source, "datasets/acme/corpus": source}) as (endpoint, asked):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield asked


def test_a_copy_in_the_cache_needs_no_network(cache, source):
    snapshot = lay_out(cache, "acme/tiny", source)
    for text in ("acme/tiny", "acme/tiny@main", f"acme/tiny@{COMMIT}"):
        assert hub.local(text).resolve() == snapshot.resolve(), text
    assert hub.name_of(hub.local("acme/tiny")) == "acme/tiny"
    assert hub.local("acme/tiny/tiny-q4.gguf").read_text() == "tiny-q4.gguf"
    assert hub.local(cache / "models--acme--tiny").resolve() == snapshot.resolve()
    lay_out(cache, "acme/corpus", source, "datasets")
    assert hub.local("acme/corpus", "dataset", ["*.json"]).name == COMMIT


def test_a_path_that_exists_wins(cache, source, tmp_path):
    lay_out(cache, "acme/tiny", source)
    (tmp_path / "acme" / "tiny").mkdir(parents=True)
    assert str(hub.local("acme/tiny")) == "acme/tiny"
    (tmp_path / "acme" / "tiny").rmdir()
    assert str(hub.local("acme/tiny")) == "acme/tiny", "a mistyped path below a directory of ours"
    (tmp_path / "acme").rmdir()
    assert hub.local("acme/tiny").name == COMMIT


@pytest.mark.parametrize("text", ["/models/tiny", "tiny", "a/b/../c", "runs/tiny.toml", "./a/b"])
def test_what_can_only_be_a_path_stays_one(cache, text):
    assert hub.HubId.parse(text) is None
    assert str(hub.local(text)) == text.removeprefix("./")


@pytest.mark.parametrize(
    ("text", "kind", "error", "fetch"),
    [
        ("acme/tiny", "model", ModelError, "hf download acme/tiny"),
        ("acme/tiny@v2", "model", ModelError, "hf download acme/tiny --revision v2"),
        ("acme/tiny/x.gguf", "model", ModelError, "hf download acme/tiny"),
        ("acme/corpus", "dataset", DataError, "hf download acme/corpus --repo-type dataset"),
    ],
)
def test_neither_cache_nor_network_is_one_line(cache, text, kind, error, fetch):
    with pytest.raises(error) as caught:
        hub.local(text, kind)
    line = str(caught.value)
    assert "\n" not in line
    for part in (f"{kind} acme/", "HF_HUB_OFFLINE is set", str(cache), fetch):
        assert part in line, line


def test_no_answer_is_one_line(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match=r"no answer of the hub; .*hf download acme/tiny"):
        hub.local("acme/tiny")


def test_what_is_read_is_downloaded_once(online):
    found = hub.local("acme/tiny")
    assert sorted(path.name for path in found.iterdir()) == ["config.json", "model.safetensors"]
    assert (found / "config.json").read_text() == "config.json"
    assert hub.local("acme/tiny/tiny-q4.gguf").read_text() == "tiny-q4.gguf"
    before = len([path for path in online if "/resolve/" in path])
    assert hub.local("acme/tiny") == found
    assert len([path for path in online if "/resolve/" in path]) == before
    rows = hub.local("acme/corpus", "dataset", ["*.bin"])
    assert [path.name for path in rows.iterdir()] == ["pytorch_model.bin"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("acme/tinny", "no such repository on the hub"),
        ("acme/tiny@v9", "no revision v9"),
        ("acme/tiny/other.gguf", "no file other.gguf in it"),
    ],
)
def test_what_the_hub_has_not_is_one_line(online, text, found):
    with pytest.raises(ModelError, match=found) as caught:
        hub.local(text)
    assert "\n" not in str(caught.value)
