"""Peak memory of importing a published model of several files, made with random weights.

Writes a Llama-like model of bfloat16 shards, imports it in a process of its own, and prints the
most memory that process had beyond what it had before, against the parameters' bytes and the
largest shard's::

    python benchmarks/import_memory.py --gb 1.2 --shard-gb 0.25
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def make(directory: Path, gb: float, shard_gb: float) -> None:
    """A directory as transformers saves one, but for the tokenizer."""
    import ml_dtypes
    import numpy as np

    from ziggurat.formats import write_sharded
    from ziggurat.models import LanguageModel, LlamaConfig
    from ziggurat.models.families.llama import hf

    layers = max(1, round(gb * 1e9 / 2 / (4 * 1024**2 + 3 * 1024 * 4096)))
    config = LlamaConfig(vocab_size=32000, d_model=1024, n_layers=layers, n_heads=16, d_ff=4096)
    shapes = LanguageModel.build(config).abstract
    rng = np.random.default_rng(0)

    def tensors():
        from ziggurat.core.pytrees import named_leaves

        leaves = named_leaves(shapes)
        for name in hf.hf_names(config):
            shape = leaves[name.ours].shape[name.stacked_axes :]
            shape = shape[::-1] if name.transpose else shape
            for theirs in name.all_theirs(layers):
                yield theirs, rng.random(shape, np.float32).astype(ml_dtypes.bfloat16)

    write_sharded(directory, tensors(), int(shard_gb * 1e9))
    (directory / "config.json").write_text(json.dumps(hf.to_hf(config)))


def status(key: str) -> int:
    """An entry of this process's ``/proc`` status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure(directory: Path) -> None:
    """Import it here, and print this process's peak."""
    import jax

    from ziggurat.formats import SafetensorsDirectory
    from ziggurat.models.conversion.dropped_tensors import stored_head
    from ziggurat.models.loading import pretrained, weight_reading
    from ziggurat.nn import Precision

    jax.device_put(1.0).block_until_ready()
    family, model = pretrained.hf_model(directory, Precision(param="bfloat16"))
    tensors = SafetensorsDirectory(directory)
    before = status("VmRSS")
    head = stored_head(model.config, family.hf_names, tensors)
    params = weight_reading.read_weights(family, model, head, tensors, None)
    jax.block_until_ready(params)
    peak = status("VmHWM")
    files = [file.stat().st_size for file in directory.glob("*.safetensors")]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    result = {
        "parameters_bytes": size,
        "shards": len(files),
        "largest_shard_bytes": max(files),
        "peak_bytes_beyond_start": peak - before,
        "peak_beyond_parameters_bytes": peak - before - size,
    }
    print(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gb", type=float, default=1.2, help="size of the files together")
    parser.add_argument("--shard-gb", type=float, default=0.25)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    with tempfile.TemporaryDirectory() as directory:
        make(Path(directory), arguments.gb, arguments.shard_gb)
        subprocess.run([sys.executable, __file__, "--measure", directory], check=True)


if __name__ == "__main__":
    main()
