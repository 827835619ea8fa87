"""Checkpoints made to do harm: nothing in them runs, and every one is refused in one line."""

import collections
import contextlib
import io
import os
import pickle
import struct
import subprocess
import zipfile

import numpy as np
import pytest
from tests.oracle import torch_files as oracle

from ziggurat.checkpoint import containers
from ziggurat.core.errors import CheckpointError
from ziggurat.formats.pytorch.pickle_reader import read_pickle
from ziggurat.formats.pytorch.writer import (
    Global,
    Persistent,
    PickledCall,
    encode,
    tensor_value,
    write_archive,
)


class Runs:
    """An object whose unpickling calls ``function(*arguments)``."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) + (() if state is None else (state,))

    def __reduce__(self):
        return self.reduced


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def attacks(canary) -> dict[str, bytes]:
    """Pickles that make the file ``canary`` when Python's own unpickler reads them."""
    command = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w')"
    plain = command.encode()
    return {
        "os.system": pickle.dumps(Runs(os.system, command)),
        "protocol 0": pickle.dumps(Runs(os.system, command), protocol=0),
        "protocol 5": pickle.dumps({"a": [Runs(os.system, command)]}, protocol=5),
        "eval": pickle.dumps(Runs(eval, code)),
        "exec": pickle.dumps(Runs(exec, code)),
        "Popen": pickle.dumps(Runs(subprocess.check_call, ["touch", str(canary)])),
        "GLOBAL": b"cposix\nsystem\n(" + text(command) + b"tR.",
        "STACK_GLOBAL": b"\x80\x04" + text("posix") + text("system") + b"\x93(" + text(command)
        + b"tR.",
        "INST": b"(S'" + plain + b"'\niposix\nsystem\n.",
        "OBJ": b"(cposix\nsystem\n" + text(command) + b"o.",
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n((" + text("touch") + text(str(canary))
        + b"lt\x810csubprocess\ncheck_call\n((" + text("touch") + text(str(canary)) + b"ltR.",
        "apply by name": b"cos\nsystem\nq\x000h\x00(" + text(command) + b"tR.",
        "inside a tensor": b"ccollections\nOrderedDict\n)R(" + text("w") + b"cposix\nsystem\n("
        + text(command) + b"tR" + b"u.",
    }  # fmt: skip


NAMES = list(attacks("x"))


def zip_of(entries: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return out.getvalue()


def torch_file(data: bytes, **entries: bytes) -> bytes:
    named = {f"archive/{name.replace('_', '/')}": content for name, content in entries.items()}
    return zip_of({"archive/data.pkl": data, "archive/version": b"3\n"} | named)


def error_of(function, *args) -> str:
    with pytest.raises(CheckpointError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


@pytest.fixture
def refused(tmp_path):
    """Open a file of the given content, which must be refused; the error's line."""

    def run(content: bytes, folder: str = "", name: str = "x.pt") -> str:
        file = tmp_path / folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        return error_of(containers.open, file if not folder else file.parent)

    return run


MODULE = "torch.distributed.checkpoint"


def size(*sizes: int) -> PickledCall:
    return PickledCall("torch.Size", (sizes,))


def record(name: str, state) -> PickledCall:
    return PickledCall(f"{MODULE}.{name}", (), state)


def described(chunks, dtype="float32", shape=(4,)) -> PickledCall:
    """Metadata of one tensor, whose chunks are pairs of start and length."""
    properties = (Global(f"torch.{dtype}"), None, False, 0, False)
    state = {
        "properties": record("metadata.TensorProperties", properties),
        "size": size(*shape),
        "chunks": [
            record("metadata.ChunkStorageMetadata", {"offsets": size(o), "sizes": size(n)})
            for o, n in chunks
        ],
    }
    return record("metadata.TensorStorageMetadata", state)


def index(name: str, start: int | None) -> PickledCall:
    offset = {} if start is None else {"offset": size(start)}
    return record("metadata.MetadataIndex", {"fqn": name, "index": None, **offset})


@pytest.mark.parametrize("attack", NAMES)
def test_attacks_do_not_run(tmp_path, refused, attack, caplog):
    canary = tmp_path / "canary"
    payload = attacks(canary)[attack]
    with contextlib.suppress(Exception):  # what comes after the attack may fail
        pickle.loads(payload)
    assert canary.exists(), "the attack is real: Python's own unpickler runs it"
    canary.unlink()

    assert "pickle in here: found" in error_of(read_pickle, payload, "here")
    assert "pickle in" in refused(torch_file(payload))
    assert "pickle in" in refused(payload, "dcp", ".metadata")

    harmful = torch_file(payload)
    (tmp_path / "dcp" / "x").write_bytes(harmful)
    place = record(
        "filesystem._StorageInfo", {"relative_path": "x", "offset": 0, "length": len(harmful)}
    )
    state = {
        "state_dict_metadata": {
            "w": described([(0, 4)]),
            "value": record("metadata.BytesStorageMetadata", {}),
        },
        "storage_data": {index("w", 0): place, index("value", None): place},
    }
    (tmp_path / "dcp" / ".metadata").write_bytes(encode(record("metadata.Metadata", state)))
    with containers.open(tmp_path / "dcp") as tensors:
        assert "pickle in" in error_of(tensors.read, "w")
        assert tensors.metadata == {}
    assert "left out the value value: pickle in" in caplog.text
    assert not canary.exists()


def test_names_that_are_refused_are_told(refused):
    line = refused(torch_file(pickle.dumps(Runs(eval, "1"))))
    assert line.endswith(
        "found builtins.eval; expected tensors and plain values; a pickle can run code, so only "
        "a few names are read; save it as safetensors"
    )


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"\x80\x04N\x85\x94.", ""),
        (b"(iposix\nsystem\n.", "opcode INST"),
        (b"\x80\x02\x82\x01.", "opcode EXT1"),
        (b"ctorch\nSize\n)}\x92.", "opcode NEWOBJ_EX"),
        (b"(ctorch\nSize\no.", "opcode OBJ"),
        (b"ccollections\nabc.sys\n.", "collections.abc.sys"),
        (b"cbuiltins\ngetattr\n.", "builtins.getattr"),
        (b"ccopyreg\n_reconstructor\n.", "copyreg._reconstructor"),
        (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
        (b"P0\n.", "opcode PERSID"),
        (b"ccollections\nOrderedDict\n}b.", "state for Name"),
        (b"ctorch\nfloat32\n)R.", "a call of"),
        (b"K\x01K\x02\x93.", "a name that is not text"),
        (b"]K\x01K\x02s.", "another type than list"),
        (b"}K\x01a.", "another type than dict"),
        (b"}]K\x01s.", "dictionary's key of type list"),
        (b"}(K\x01u.", "a key without a value"),
        (b"cnumpy\ndtype\n(X\x01\x00\x00\x00OtR.", "numpy type 'O'"),
        (b"K\x01\x87.", "a tuple of values that are not there"),
        (b"N", "damaged"),
        (b"", "damaged"),
        (b"NN.", "damaged"),
        (b".", "damaged"),
        (b"R.", "damaged"),
        (b"h\x07.", "damaged"),
        (b"t.", "damaged"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x00x.", "damaged"),
        (b"X\xff\xff\xff\x7fx.", "damaged"),
        (b"I" + b"9" * 5000 + b"\n.", "damaged"),
        (b"Nr\xff\xff\xff\xff.", ""),
    ],
)
def test_odd_opcodes(data, part):
    if not part:  # a memo's index costs nothing
        assert read_pickle(data, "here") in (None, (None,))
        return
    assert part in error_of(read_pickle, data, "here")


def test_names_cannot_write_to_the_terminal():
    harm = b"\x80\x04" + text("os\n\x1b[2J") + text("system") + b"\x93."
    assert "found os??[2J.system" in error_of(read_pickle, harm, "here")


def test_values_without_end(refused):
    assert "nested without end" in refused(torch_file(b"]q\x00(h\x00h\x00e."))  # holds itself
    laughs = b"(]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)) + b"t."
    assert "nested without end" in refused(torch_file(laughs))
    tuples = b")q\x000" + b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(60)) + b"h<"
    assert "key of type tuple" in error_of(read_pickle, b"}" + tuples + b"Ns.", "here")
    for name in ("torch.device", "torch.Size", "pathlib.PosixPath", "collections.OrderedDict"):
        module, _, last = name.rpartition(".")
        error_of(read_pickle, f"c{module}\n{last}\n".encode() + tuples + b"\x85R.", "here")
    assert "nested without end" in refused(torch_file(b"]" * 3000 + b"a" * 2999 + b"."))


def rebuilt(offset=0, shape=(2,), strides=(1,), count=4, key="0", storage="FloatStorage") -> bytes:
    """A file of one tensor over four floats, with the given claims."""
    identifier = ("storage", Global(f"torch.{storage}"), key, "cpu", count)
    tensor = PickledCall(
        "torch._utils._rebuild_tensor_v2",
        (
            Persistent(identifier),
            offset,
            shape,
            strides,
            False,
            PickledCall("collections.OrderedDict"),
        ),
    )
    return torch_file(encode({"w": tensor}), data_0=np.arange(4, dtype=np.float32).tobytes())


def test_claims_about_storages(tmp_path, refused):
    file = tmp_path / "good.pt"
    file.write_bytes(rebuilt(offset=1, shape=(2,), strides=(2,)))
    with containers.open(file) as tensors:
        np.testing.assert_array_equal(tensors.read("w"), [1, 3])
    ends = "ends at element"
    assert ends in refused(rebuilt(offset=3))
    assert ends in refused(rebuilt(shape=(5,)))
    assert ends in refused(rebuilt(shape=(2, 2), strides=(2, 2)))
    assert ends in refused(rebuilt(offset=2**61, shape=(1,)))
    assert "size -1" in refused(rebuilt(offset=-1))
    assert "size -1" in refused(rebuilt(strides=(-1,)))
    assert "size -2" in refused(rebuilt(shape=(-2,)))
    assert "size -4" in refused(rebuilt(count=-4))
    assert "size 1.5" in refused(rebuilt_with_float())
    assert "dimensions" in refused(rebuilt(shape=(2, 2)))
    assert "sizes of type" in refused(rebuilt(shape=(1,) * 40, strides=(1,) * 40))
    assert "of 40000000000000 bytes" in refused(rebuilt(shape=(10**13,), strides=(0,)))
    assert "16 bytes for storage 0; expected 20 bytes" in refused(rebuilt(count=5, offset=3))
    assert "no such entry for storage 7" in refused(rebuilt(key="7"))
    assert "a storage of key '../0'" in refused(rebuilt(key="../0"))
    assert "torch.QInt8Storage" in refused(rebuilt(storage="QInt8Storage"))


def rebuilt_with_float() -> bytes:
    with zipfile.ZipFile(io.BytesIO(rebuilt())) as archive:
        data = archive.read("archive/data.pkl")
    # the first integer after the storage is the offset
    data = data.replace(b"tQJ\x00\x00\x00\x00", b"tQG" + struct.pack(">d", 1.5))
    return torch_file(data, data_0=bytes(16))


def test_zip_files(refused):
    data, values = encode({"w": tensor_value("w", "0", (4,), np.dtype("f4"))}), bytes(16)
    good = {"a/data.pkl": data, "a/data/0": values}
    bomb = {"a/data.pkl": data, "a/data/0": bytes(10_000_000)}
    assert "compressed" in refused(zip_of(bomb, zipfile.ZIP_DEFLATED))
    assert "compressed" in refused(zip_of(good, zipfile.ZIP_LZMA))
    assert "an entry named '../evil'" in refused(zip_of(good | {"../evil": b"x"}))
    assert "an entry named '/etc/x'" in refused(zip_of(good | {"/etc/x": b"x"}))
    assert "2 entries named data.pkl" in refused(zip_of(good | {"b/data.pkl": data}))
    assert "0 entries named data.pkl" in refused(zip_of({"readme.txt": b"PK"}))
    assert "big-endian" in refused(zip_of(good | {"a/byteorder": b"big"}))
    whole = zip_of(good)
    twice = zip_of(good | {"a/data/1": values}).replace(b"a/data/1", b"a/data/0")
    assert "the entry 'a/data/0' twice" in refused(twice)
    encrypted = bytearray(whole)
    encrypted[whole.index(b"PK\x01\x02") + 8] |= 1
    assert "encrypted entry 'a/data.pkl'" in refused(bytes(encrypted))
    far = bytearray(whole)
    central = whole.rindex(b"PK\x01\x02")
    far[central + 20 : central + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    assert "the entry 'a/data/0' outside the file" in refused(bytes(far))
    moved = bytearray(whole)
    moved[central + 42 : central + 46] = struct.pack("<I", 3)
    assert "header of entry 'a/data/0'" in refused(bytes(moved))


def test_flipped_values_are_found(tmp_path):
    file = tmp_path / "x.pt"
    containers.write("pt", {"w": np.arange(100, dtype=np.float32)}, file)
    content = bytearray(file.read_bytes())
    content[content.index(np.float32(50).tobytes()) + 1] ^= 4
    file.write_bytes(content)
    with containers.open(file) as tensors:
        assert "another CRC for storage 0" in error_of(tensors.read, "w")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"relative_path": "../secret"}, "file '../secret' for w"),
        ({"relative_path": "/etc/passwd"}, "file '/etc/passwd' for w"),
        ({"relative_path": "gone.distcp"}, "gone.distcp: found"),
        ({"offset": -1}, "w at bytes -1"),
        ({"length": 10**15}, "w at bytes 0 to 1000000000000000"),
        ({"transform_descriptors": ["zstd"]}, "behind ['zstd']"),
        ({"sizes": (5,)}, "do not fill its shape"),
        ({"sizes": (3,)}, "do not fill its shape"),
        ({"chunks": [(0, 2), (1, 2)]}, "that overlap"),
        ({"shape": (1 << 50,), "sizes": (1 << 50,)}, "another tensor than .metadata says"),
        ({"chunks": [(0, 2), (2, 2)]}, "another tensor than .metadata says"),
        ({"dtype": "float16"}, "another tensor than .metadata says"),
        ({"fqn": "other"}, "no place for w"),
        ({"name": "StorageMeta"}, "metadata of a DCP checkpoint"),
    ],
)
def test_claims_of_distributed_metadata(tmp_path, change, part):
    with open(tmp_path / "__0_0.distcp", "wb") as file:
        value = tensor_value("w", "0", (4,), np.dtype(np.float32))
        write_archive(file, value, {"0": np.arange(4, dtype=np.float32)})
        length = file.tell()
    chunks = change.get("chunks", [(0, change.get("sizes", (4,))[0])])
    info = {"relative_path": "__0_0.distcp", "offset": 0, "length": length}
    info |= {key: value for key, value in change.items() if key in {*info, "transform_descriptors"}}
    state = {
        "state_dict_metadata": {
            "w": described(chunks, change.get("dtype", "float32"), change.get("shape", (4,)))
        },
        "storage_data": {
            index(change.get("fqn", "w"), start): record("filesystem._StorageInfo", info)
            for start, _ in chunks
        },
    }
    name = change.get("name", "Metadata")
    (tmp_path / ".metadata").write_bytes(encode(record(f"metadata.{name}", state)))

    def read() -> None:
        with containers.open(tmp_path) as tensors:
            tensors.read("w")

    assert part in error_of(read)


@pytest.mark.parametrize("path", [oracle.TYPES, oracle.NANOGPT], ids=["types", "nanogpt"])
def test_flipped_bytes_anywhere(tmp_path, path):
    """One error, or the very values, though perhaps fewer or under other names."""
    expected = oracle.types() if path == oracle.TYPES else oracle.nanogpt()
    values = {tensor.tobytes() for tensor in expected.values()}
    file, outcomes = tmp_path / "x.pt", collections.Counter()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        content = bytearray(path.read_bytes())
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        file.write_bytes(content)
        try:
            with containers.open(file) as tensors:
                assert {tensors.read(name).tobytes() for name in tensors} <= values, seed
        except CheckpointError:
            outcomes["refused"] += 1
        else:
            outcomes["read right"] += 1
    assert len(outcomes) == 2, outcomes


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A pickle with a few bytes altered, lost, or repeated elsewhere."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at, other, count = (int(n) for n in rng.integers(len(out) - 20, size=3))
        match int(rng.integers(3)):
            case 0:
                out[at] = int(rng.integers(256))
            case 1:
                del out[at : at + 1 + count % 5]
            case _:
                out[at:at] = out[other : other + 1 + count % 20]
    return bytes(out)


def test_mutated_pickles_give_one_line_or_values(tmp_path):
    """No other error escapes, whatever a pickle says; 13,000 were tried by hand."""
    names = {"types": oracle.TYPES, "nanogpt": oracle.NANOGPT}
    entries = {}
    for name, path in names.items():
        with zipfile.ZipFile(path) as archive:
            entries[name] = {info.filename: archive.read(info) for info in archive.infolist()}
    for file in oracle.DISTRIBUTED.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    metadata = (oracle.DISTRIBUTED / ".metadata").read_bytes()
    refused = 0
    for seed in range(90):
        rng = np.random.default_rng(seed)
        path = tmp_path
        if seed % 3:
            path = tmp_path / "x.pt"
            content = entries[list(names)[seed % 2]]
            (name,) = (name for name in content if name.endswith("data.pkl"))
            path.write_bytes(zip_of(content | {name: mutated(content[name], rng)}))
        else:
            (path / ".metadata").write_bytes(mutated(metadata, rng))
        try:
            with containers.open(path) as tensors:
                assert [tensors.read(name) for name in tensors]
                assert isinstance(tensors.metadata, dict)
        except CheckpointError as error:
            refused += "\n" not in str(error)
        else:
            refused += 1
    assert refused == 90
