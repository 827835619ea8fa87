"""Parameters read from files to devices, shard by shard and in pieces."""

import jax
import numpy as np
import pytest
from tests.models.family_cases import ours
from tests.oracle import families

from ziggurat.core.errors import CheckpointError
from ziggurat.formats import SafetensorsDirectory, write_sharded
from ziggurat.mesh import MeshConfig, build
from ziggurat.models.conversion.dropped_tensors import Head
from ziggurat.models.conversion.weight_names import StoredWeight, named_as_found
from ziggurat.models.loading import placing, weight_reading

CASES = ("llama/llama-3.2-like", "gpt2/plain")  # transposed matrices; three parameters in a tensor


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("files")
    write_sharded(path, ours(request.param).theirs.items(), 50_000)
    assert len(list(path.glob("*.safetensors"))) > 2
    return request.param, SafetensorsDirectory(path)


def head_of(a, names=None):
    """The table of names of a checkpoint without copies of the embedding."""
    return Head(a.config, list(names or a.family.hf_names(a.config)), frozenset())


@pytest.mark.parametrize("piece", [placing.PIECE_BYTES, 5000])
def test_each_device_gets_its_part(case, piece, monkeypatch):
    name, tensors = case
    monkeypatch.setattr(placing, "PIECE_BYTES", piece)
    a, layout = ours(name), build(MeshConfig(fsdp=4, tensor=2))
    read, whole = [], StoredWeight.read

    def watched(weight, index=()):
        read.append(whole(weight, index))
        return read[-1]

    monkeypatch.setattr(StoredWeight, "read", watched)
    params = weight_reading.read_weights(a.family, a.model, head_of(a), tensors, layout)
    jax.tree.map(np.testing.assert_array_equal, params, a.params)
    assert jax.tree.map(lambda x: x.sharding, params) == a.model.shardings(layout)
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert max(part.nbytes for part in read) <= largest / 4, "more than a device's part at once"
    if piece == 5000:
        rows = [leaf.nbytes / leaf.shape[0] for leaf in jax.tree.leaves(params)]
        assert max(part.nbytes for part in read) <= max(piece, *rows)


def test_a_wrong_shape_is_named(case):
    name, tensors = case
    a = ours(name)
    weight_name = next(n for n in a.family.hf_names(a.config) if n.ours == "embedding.table")
    weight = StoredWeight(weight_name, tensors, (96, 5), np.float32, 2)
    with pytest.raises(CheckpointError, match=rf"tensor {weight_name.theirs}: found shape"):
        weight.read()


def test_published_gpt2_has_no_name_before_its_weights_and_holds_its_mask(tmp_path):
    """The files of 2019: ``h.0.attn.c_attn.weight``, and the causal mask as a buffer."""
    a = ours("gpt2/plain")
    tensors = {name.removeprefix("transformer."): x for name, x in a.theirs.items()}
    tensors |= {f"h.{i}.attn.bias": np.tri(40, dtype=np.float32)[None, None] for i in range(2)}
    write_sharded(tmp_path, tensors.items(), 10**9)
    source = SafetensorsDirectory(tmp_path)
    names = named_as_found(a.family.hf_names(a.config), source, a.family.base)
    params = weight_reading.read_weights(a.family, a.model, head_of(a, names), source, None)
    jax.tree.map(np.testing.assert_array_equal, params, a.params)
    assert families.load("gpt2/plain").shapes.keys() == a.theirs.keys()
