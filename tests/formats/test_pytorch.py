"""Foreign containers against PyTorch itself: what it writes is read, what is written it reads."""

import warnings

import numpy as np
import pytest

from ziggurat.checkpoint import containers
from ziggurat.core.errors import CheckpointError
from ziggurat.formats.pytorch.names import DTYPES

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)


def raw(tensor) -> bytes:
    """The bytes of a tensor in C order."""
    contiguous = tensor.detach().contiguous().reshape(-1)
    return contiguous.view(torch.uint8).numpy().tobytes()


def assert_equal(found, tensor):
    assert tuple(found.shape) == tuple(tensor.shape)
    assert found.dtype == DTYPES[str(tensor.dtype).removeprefix("torch.")]
    assert found.tobytes() == raw(tensor)


@pytest.fixture(scope="module")
def every() -> dict[str, np.ndarray]:
    """Every type, and shapes that are easily got wrong."""
    tensors = {name: RNG.integers(0, 2, (3, 5)).astype(dtype) for name, dtype in DTYPES.items()}
    views = {
        "scalar": np.float32(2.5),
        "empty": np.zeros((0, 3), np.int16),
        "transposed": RNG.normal(size=(4, 6)).T,
        "big-endian": np.arange(5, dtype=">f4"),
    }
    return tensors | views


def test_torch_reads_pt(tmp_path, every):
    path = containers.write("pt", every, tmp_path / "x.pt")
    for options in ({}, {"mmap": True}):
        loaded = torch.load(path, weights_only=True, **options)
        assert list(loaded) == list(every)
        for name, array in every.items():
            little = np.asarray(array).astype(np.asarray(array).dtype.newbyteorder("<"))
            assert tuple(loaded[name].shape) == little.shape
            assert raw(loaded[name]) == little.tobytes(), name
        loaded["float32"][0] = 1  # its memory is its own, or copied on write
    with containers.open(path) as tensors:
        assert tensors.read("float32").tobytes() == every["float32"].tobytes()


def test_large_entries_have_64_bit_lengths(tmp_path, every, monkeypatch):
    monkeypatch.setattr("ziggurat.formats.pytorch.writer._LARGE", 16)
    path = containers.write("pt", every, tmp_path / "x.pt")
    loaded = torch.load(path, weights_only=True)
    with containers.open(path) as tensors:
        for name in tensors:
            assert_equal(tensors.read(name), loaded[name])


def test_torch_reads_distcp(tmp_path, every):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    path = containers.write("distcp", every, tmp_path / "dcp")
    expected = torch.load(containers.write("pt", every, tmp_path / "x.pt"), weights_only=True)
    state = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is but one process
        dcp.load(state, checkpoint_id=str(path))
        dcp_to_torch_save(str(path), str(tmp_path / "converted.pt"))
    converted = torch.load(tmp_path / "converted.pt", weights_only=True)
    for name, tensor in expected.items():
        for found in (state[name], converted[name]):
            assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype), name
            assert raw(found) == raw(tensor), name


def random_tensors() -> dict:
    """Views of all sorts, drawn at random."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 7, 8, generator=generator)
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float64)
    tensors = {}
    for index in range(60):
        tensor = base.to(kinds[index % len(kinds)])
        steps = RNG.integers(1, 4, 3)
        starts = RNG.integers(0, 3, 3)
        tensor = tensor[starts[0] :: steps[0], starts[1] :: steps[1], starts[2] :: steps[2]]
        tensors[f"t.{index}"] = tensor.permute(*RNG.permutation(3).tolist())
    return tensors


@pytest.mark.parametrize("crc", [True, False])
def test_views_that_torch_saved(tmp_path, crc):
    tensors = random_tensors()
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    lightning = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": module.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "tensors": tensors,
        "parameter": module[0].weight,
        "rng": {"numpy": np.random.get_state()[1], "torch": torch.get_rng_state()},
    }
    torch.serialization.set_crc32_options(crc)
    try:
        torch.save(lightning, tmp_path / "x.ckpt")
    finally:
        torch.serialization.set_crc32_options(True)
    with containers.open(tmp_path / "x.ckpt") as found:
        for name, tensor in tensors.items():
            assert_equal(found.read(f"tensors.{name}"), tensor)
            part = found[f"tensors.{name}"].read(np.s_[1:, :2])
            assert_equal(part, tensor[1:, :2])
        for name, tensor in module.state_dict().items():
            assert_equal(found.read(f"state_dict.{name}"), tensor)
        state = optimizer.state_dict()["state"]
        assert_equal(found.read("optimizer_states.0.state.1.exp_avg"), state[1]["exp_avg"])
        assert_equal(found.read("parameter"), module[0].weight)
        np.testing.assert_array_equal(found.read("rng.numpy"), np.random.get_state()[1])
        assert found.metadata["epoch"] == 3
        (saved,) = found.metadata["optimizer_states"]
        assert saved["param_groups"][0]["lr"] == 0.1


def test_distributed_checkpoints_of_nested_state(tmp_path):
    import torch.distributed.checkpoint as dcp

    module = torch.nn.Linear(3, 4)
    state = {"model": module.state_dict(), "list": [torch.ones(2), 5], "extra": {"lr": 0.1}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=str(tmp_path / "dcp"))
    with containers.open(tmp_path / "dcp") as tensors:
        assert set(tensors) == {"model.weight", "model.bias", "list.0"}
        assert_equal(tensors.read("model.weight"), module.weight)
        assert tensors.metadata == {"list.1": 5, "extra.lr": 0.1}


def test_what_torch_can_save_and_is_refused(tmp_path):
    def error(value, **options) -> str:
        torch.save(value, tmp_path / "x.pt", **options)
        with pytest.raises(CheckpointError) as caught:
            containers.open(tmp_path / "x.pt")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    old = error({"w": torch.ones(2)}, _use_new_zipfile_serialization=False)
    assert "before PyTorch 1.6" in old
    assert "torch.nn.modules.linear.Linear" in error(torch.nn.Linear(2, 2))
    assert "_rebuild_sparse_tensor" in error({"w": torch.eye(3).to_sparse()})
    assert "_rebuild_meta_tensor" in error({"w": torch.zeros(2, device="meta")})
