"""What the compressed-tensors library writes and computes: tiny Llama checkpoints in its formats.

The files' tensors, ``config.json`` and logits are stored. Needs torch, transformers and
compressed-tensors for :func:`recompute` only::

    python -m tests.oracle.compressed --write    # recompute and store
    python -m tests.oracle.compressed --check    # recompute and compare with what is stored
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tests.oracle import families
from tests.oracle.processors import APART

FILE = Path(__file__).with_suffix(".npz")
TOKENS = 24
BASE = {
    "vocab_size": families.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
DYNAMIC = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": True}
FP8 = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}
ATTENTION, MLP = ["re:.*self_attn.*"], ["re:.*mlp.*"]
CASES: dict[str, list[dict[str, Any]]] = {
    "mixed": [{"targets": MLP, "weights": INT4}, {"targets": ATTENTION, "weights": INT8}],
    "zero-points": [
        {"targets": MLP, "weights": INT4 | {"symmetric": False}},
        {"targets": ["Linear"], "weights": INT8 | {"symmetric": False}},
    ],
    "int8-activations": [
        {"targets": MLP, "weights": INT4, "input_activations": DYNAMIC},
        {"targets": ATTENTION, "weights": INT8, "input_activations": DYNAMIC},
    ],
    "fp8": [
        {"targets": ["Linear"], "weights": FP8, "input_activations": DYNAMIC | {"type": "float"}}
    ],
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """One checkpoint and what the library's own model says of it."""

    config: dict[str, Any]
    tensors: dict[str, np.ndarray]
    logits: np.ndarray
    """``[1, TOKENS, v]``, float32, with weights and activations rounded as the formats say."""


def tokens() -> np.ndarray:
    """The input ids of every case, ``[1, TOKENS]``."""
    return families.tokens("plain")[:, :TOKENS]


def load() -> dict[str, Stored]:
    """Every stored case."""
    with np.load(FILE) as file:
        described = json.loads(file["description"].tobytes())
        return {case: _load(file, case, described[case]) for case in CASES}


def _load(file: Any, case: str, entry: dict[str, Any]) -> Stored:
    tensors = {
        name: file[f"{case}/{name}"].view(getattr(ml_dtypes, dtype, dtype))
        for name, dtype in entry["dtypes"].items()
    }
    drawn = {n: families.drawn("plain", n, tuple(shape)) for n, shape in entry["drawn"].items()}
    tensors |= drawn
    return Stored(entry["config"], tensors, file[f"{case}/logits"])


def recompute(case: str) -> Stored:
    """Quantise with the library, run its model, and read back the files that it writes."""
    import torch
    import transformers
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    from ziggurat.formats import SafetensorsDirectory

    config = transformers.LlamaConfig(**BASE, architectures=["LlamaForCausalLM"])
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = families.drawn("plain", name, tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(drawn))
    groups = {f"group_{i}": group for i, group in enumerate(CASES[case])}
    apply_quantization_config(model, QuantizationConfig(config_groups=groups, ignore=["lm_head"]))
    for module in model.modules():
        _calibrate(module)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens()).long()).logits.numpy()
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        compressor.update_config(directory)
        values = json.loads(Path(directory, "config.json").read_text())
        files = SafetensorsDirectory(Path(directory))
        return Stored(values, {name: np.array(files.read(name)) for name in files}, logits)


def _calibrate(module: Any) -> None:
    """Scales and zero points of a module's weight, by the extremes of each group."""
    from compressed_tensors.quantization.utils import calculate_qparams

    scheme = getattr(module, "quantization_scheme", None)
    if scheme is None:
        return
    args = scheme.weights
    values = module.weight.detach()
    if args.strategy == "tensor":
        low, high = values.min().reshape(1), values.max().reshape(1)
    else:
        values = values.reshape(len(values), -1, args.group_size or values.shape[1])
        low, high = values.amin(-1), values.amax(-1)
    scale, zero_point = calculate_qparams(low, high, args)
    module.weight_scale.data.copy_(scale)
    if hasattr(module, "weight_zero_point"):
        module.weight_zero_point.data.copy_(zero_point)


def write() -> None:
    """Recompute every case and store the results."""
    arrays: dict[str, Any] = {}
    described = {}
    for case in CASES:
        found = recompute(case)
        drawn = {name: tensor.shape for name, tensor in found.tensors.items() if _is_drawn(name)}
        kept = {name: found.tensors[name] for name in found.tensors.keys() - drawn.keys()}
        dtypes = {name: str(tensor.dtype) for name, tensor in kept.items()}
        described[case] = {"config": found.config, "dtypes": dtypes, "drawn": drawn}
        arrays[f"{case}/logits"] = found.logits
        for name, tensor in kept.items():
            odd = tensor.dtype.kind == "V" or tensor.dtype.name.startswith("float8")
            arrays[f"{case}/{name}"] = tensor.view(np.uint8) if odd else tensor
    text = np.frombuffer(json.dumps(described).encode(), np.uint8)
    np.savez_compressed(FILE, description=text, **arrays)


def _is_drawn(name: str) -> bool:
    """Whether a tensor is as it was drawn, so that it need not be stored."""
    return "_proj" not in name


def check() -> None:
    """Recompute every case and compare; tolerance 1e-5 on logits of order one."""
    stored = load()
    for case in CASES:
        compare(case, recompute(case), stored[case])


def compare(case: str, found: Stored, stored: Stored) -> None:
    """Fail, naming the case, where a recomputed result differs from the stored one."""
    np.testing.assert_allclose(found.logits, stored.logits, atol=APART, rtol=0, err_msg=case)
    assert found.tensors.keys() == stored.tensors.keys(), case
    for name, tensor in found.tensors.items():
        np.testing.assert_array_equal(
            tensor.view(np.uint8), stored.tensors[name].view(np.uint8), err_msg=f"{case}: {name}"
        )
    ours, theirs = (one.config["quantization_config"] for one in (found, stored))
    assert {**ours, "version": ""} == {**theirs, "version": ""}, case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="recompute and store")
    action.add_argument("--check", action="store_true", help="recompute and compare")
    write() if parser.parse_args().write else check()


if __name__ == "__main__":
    main()
