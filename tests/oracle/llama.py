"""What transformers computes for Llama and Mistral: a table of cases and their stored logits.

Weights are drawn from a counter-based generator keyed by (case, tensor name), so that only the
logits, the tensors' names and shapes, and ``config.json`` are stored. Needs torch and transformers
for :func:`recompute` only::

    python -m tests.oracle.llama --write    # recompute and store
    python -m tests.oracle.llama --check    # recompute and compare with what is stored
"""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_suffix(".npz")
TOKENS = 24
VOCABULARY = 96

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 5e5,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 1e4,
}
SMOLLM2 = {
    "hidden_size": 72,
    "intermediate_size": 192,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
    "tie_word_embeddings": True,
}
LLAMA_3_2 = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": LLAMA3 | {"factor": 32.0},
    "tie_word_embeddings": True,
    "eos_token_id": [5, 6, 7],
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gqa-3": {"num_key_value_heads": 3},
    "gqa-2": {"num_key_value_heads": 2},
    "mqa": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "attention-bias": {"attention_bias": True},
    "mlp-bias": {"mlp_bias": True},
    "head-dim": {"head_dim": 16},
    "one-layer": {"num_hidden_layers": 1},
    "eps": {"rms_norm_eps": 1e-2},
    "gelu": {"hidden_act": "gelu"},
    "gelu-tanh": {"hidden_act": "gelu_pytorch_tanh"},
    "relu": {"hidden_act": "relu"},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "rope-linear": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    "rope-llama3": {"rope_parameters": LLAMA3},
    "rope-yarn": {"rope_parameters": YARN},
    "rope-yarn-factor": {
        "rope_parameters": YARN | {"attention_factor": 1.3, "beta_fast": 16.0, "beta_slow": 2.0}
    },
    "rope-yarn-mscale": {
        "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.0, "truncate": False}
    },
    "rope-yarn-other-factor": {"rope_parameters": YARN | {"factor": 2.5}},
    "mistral": {"architecture": "Mistral", "num_key_value_heads": 2, "sliding_window": 7},
    "mistral-no-window": {
        "architecture": "Mistral",
        "num_key_value_heads": 2,
        "sliding_window": None,
    },
    "smollm2-like": SMOLLM2,
    "llama-3.2-like": LLAMA_3_2,
    "many-switches": {
        "num_key_value_heads": 2,
        "head_dim": 10,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "hidden_act": "gelu_pytorch_tanh",
        "rope_parameters": YARN | {"beta_fast": 8.0},
    },
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """What transformers said of one case."""

    config: dict[str, Any]
    """``config.json`` as ``save_pretrained`` writes it."""
    shapes: dict[str, tuple[int, ...]]
    """Tensors by name as safetensors files hold them."""
    logits: np.ndarray
    """``[1, TOKENS, v]``, float32."""
    parameters: int
    """``num_parameters()``."""


class Tensors(dict):
    """Tensors by name, as ``import_weights`` reads them."""

    def read(self, name: str) -> np.ndarray:
        return self[name]


def tokens(case: str) -> np.ndarray:
    """The input ids of a case, ``[1, TOKENS]``."""
    return _generator(case, "tokens").integers(0, VOCABULARY, (1, TOKENS)).astype(np.int32)


def weight(case: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor: matrices of the config's scale, norms about one, biases about zero."""
    centred = (2 * _generator(case, name).random(shape) - 1).astype(np.float32)
    if len(shape) > 1:
        return centred * np.float32(BASE["initializer_range"] * 3**0.5)
    return centred * np.float32(0.3) + np.float32(name.endswith("norm.weight"))


def weights(case: str, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """All tensors of a case."""
    return Tensors({name: weight(case, name, shape) for name, shape in shapes.items()})


def load() -> dict[str, Stored]:
    """Every stored case."""
    with np.load(FILE) as file:
        cases = json.loads(file["description"].tobytes())["cases"]
        return {
            name: Stored(
                config=entry["config"],
                shapes={tensor: tuple(shape) for tensor, shape in entry["shapes"].items()},
                logits=file[name],
                parameters=entry["parameters"],
            )
            for name, entry in cases.items()
        }


def torch_model(case: str) -> Any:
    """The transformers model of a case, with the case's weights."""
    import torch
    import transformers

    switches = dict(CASES[case])
    architecture = switches.pop("architecture", "Llama")
    config = getattr(transformers, f"{architecture}Config")(**(BASE | switches))
    config.architectures = [f"{architecture}ForCausalLM"]
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weight(case, name, tuple(parameter.shape))))
    return model


def recompute(case: str) -> Stored:
    """Run one case with transformers."""
    import torch

    model = torch_model(case)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens(case)).long()).logits.numpy()
    return Stored(
        config=json.loads(model.config.to_json_string(use_diff=True)),
        shapes={name: tuple(p.shape) for name, p in model.named_parameters()},
        logits=logits,
        parameters=model.num_parameters(),
    )


def write() -> None:
    """Recompute every case and store the results."""
    results = {case: recompute(case) for case in CASES}
    described = {
        case: {"config": r.config, "shapes": r.shapes, "parameters": r.parameters}
        for case, r in results.items()
    }
    text = json.dumps({"versions": _versions(), "cases": described}, indent=1)
    logits: dict[str, Any] = {case: r.logits for case, r in results.items()}
    np.savez_compressed(FILE, description=np.frombuffer(text.encode(), np.uint8), **logits)


def check() -> None:
    """Recompute every case and compare; tolerance 1e-5 on logits of order one."""
    stored = load()
    assert stored.keys() == CASES.keys(), set(stored) ^ set(CASES)
    for case in CASES:
        compare(case, recompute(case), stored[case])


def compare(case: str, found: Stored, stored: Stored) -> None:
    """Fail, naming the case, where a recomputed result differs from the stored one."""
    np.testing.assert_allclose(found.logits, stored.logits, atol=1e-5, rtol=0, err_msg=case)
    assert found.shapes == stored.shapes, case
    assert found.parameters == stored.parameters, case
    version = {"transformers_version"}
    for key in (found.config.keys() | stored.config.keys()) - version:
        assert found.config.get(key) == stored.config.get(key), f"{case}: {key}"


def _generator(case: str, name: str) -> np.random.Generator:
    digest = hashlib.blake2b(f"{case}/{name}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="recompute and store")
    action.add_argument("--check", action="store_true", help="recompute and compare")
    write() if parser.parse_args().write else check()


if __name__ == "__main__":
    main()
