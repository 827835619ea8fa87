"""Bytes on the device of every published format that is read, against its file's tensors."""

import jax
import pytest
from tests.models import quantised_cases as cases

from ziggurat.core.pytrees import named_leaves
from ziggurat.formats import SafetensorsDirectory
from ziggurat.kernels.linear import is_quantized
from ziggurat.models.conversion.quantization.gguf_blocks import BLOCK_TYPES
from ziggurat.models.loading import pretrained
from ziggurat.nn.precision import Precision

MOST = 1.2
"""Memory over file. Above 1 are scales of a wider type, and two halves of a byte for an odd bit."""
HALF = Precision("bfloat16", "bfloat16")


def on_device(params):
    """Bytes of all buffers of a tree, scales, zero points and floats among them."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def in_file(directory):
    """Bytes of all tensors of a directory."""
    tensors = SafetensorsDirectory(directory)
    return sum(tensors.read(name).nbytes for name in tensors)


@pytest.mark.parametrize("name", cases.CASES)
@pytest.mark.sweep
def test_a_checkpoint_takes_its_files_bytes(name, tmp_path):
    """Floats are of 16 bits in the file and in memory, as programs publish and load them; the
    quantised weights alone hold the bound in either type of computing."""
    files = cases.write(tmp_path, name, float_type="float16")
    loaded = pretrained.load(files.packed, precision=HALF)
    assert on_device(loaded.params) <= MOST * in_file(files.packed)
    for precision in (HALF, Precision()):
        leaves = named_leaves(
            pretrained.load(files.packed, precision=precision).params, is_quantized
        )
        kept = sum(on_device(leaf) for leaf in leaves.values() if is_quantized(leaf))
        assert 0 < kept <= MOST * files.module_bytes


@pytest.mark.parametrize("kind", BLOCK_TYPES)
@pytest.mark.sweep
def test_a_gguf_file_takes_its_blocks_bytes(kind, tmp_path):
    """Tables and matrices of one type of blocks; norms are float32, as in published files."""
    packed, _, stored = cases.write_gguf(tmp_path / "files", lambda name: kind)
    params = pretrained.load(packed).params
    norms = sum(
        leaf.nbytes for name, leaf in named_leaves(params, is_quantized).items() if "norm" in name
    )
    assert on_device(params) <= MOST * (stored + norms)
