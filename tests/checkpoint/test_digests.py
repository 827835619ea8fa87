"""Digests taken while files are being written."""

import os

from ziggurat.checkpoint import digests


def test_in_place_equals_reading(tmp_path):
    for size in (0, 1, 1 << 12, (1 << 22) - 1, 1 << 22, (1 << 22) + 4097):
        path = tmp_path / str(size)
        path.write_bytes(os.urandom(size))
        assert digests.digest_cached_file(path) == digests.digest_file(path)


def test_a_file_is_digested_once_it_has_stopped_growing(tmp_path, monkeypatch):
    """And again if it changes after all; what stands at the end is the digest of the end."""
    data = tmp_path / "params/ocdbt.process_0/d"
    data.mkdir(parents=True)
    read = []
    monkeypatch.setattr(digests, "_POLL_S", 3600.0)  # looks are the test's own

    def digest(path):
        read.append(path.name)
        return digests.digest_file(path)

    monkeypatch.setattr(digests, "digest_cached_file", digest)
    with digests.WhileWriting(tmp_path, 0) as writing:
        (data / "a").write_bytes(b"1")
        writing._look(finished=False)
        (data / "a").write_bytes(b"12")
        writing._look(finished=False)
        assert read == []
        writing._look(finished=False)
        (data / "b").write_bytes(b"1")
        found = writing.result()
        assert sorted(read) == ["a", "b"]
        (data / "a").write_bytes(b"123")
        changed = writing.result()
    assert sorted(read) == ["a", "a", "b"]
    names = {f"params/ocdbt.process_0/d/{name}" for name in "ab"}
    assert set(found) == set(changed) == names
    for name, known in changed.items():
        assert known.xxh3_128 == digests.digest_file(tmp_path / name)
