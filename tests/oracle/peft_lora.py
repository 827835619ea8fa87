"""Adapters as PEFT writes them, and the logits of PEFT's model with them.

Weights are drawn, so the base's ``config.json``, PEFT's config, the adapters' shapes and the logits
are stored. Needs torch, transformers and peft for :func:`recompute` and :func:`logits_of` only::

    python -m tests.oracle.peft_lora --write    # recompute and store
    python -m tests.oracle.peft_lora --check    # recompute and compare with what is stored
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tests.oracle import families
from tests.oracle.processors import APART

FILE = Path(__file__).with_suffix(".npz")
TOKENS = 16
BASE = {
    "vocab_size": 288,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "architectures": ["LlamaForCausalLM"],
}
CASES: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "rslora": {"r": 3, "lora_alpha": 2, "use_rslora": True, "target_modules": "all-linear"},
    "last-layer": {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["down_proj"],
        "layers_to_transform": [2],
    },
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """One set of adapters, its base, and what PEFT's model says."""

    base: dict[str, Any]
    """``config.json`` of the base."""
    base_shapes: dict[str, tuple[int, ...]]
    config: dict[str, Any]
    """``adapter_config.json``."""
    shapes: dict[str, tuple[int, ...]]
    """Of the adapters' tensors, by their names in the file."""
    logits: np.ndarray
    """``[1, TOKENS, v]``."""

    def base_tensors(self) -> dict[str, np.ndarray]:
        return {n: families.drawn("peft", n, tuple(s)) for n, s in self.base_shapes.items()}

    def tensors(self) -> dict[str, np.ndarray]:
        return {n: families.drawn("peft", n, tuple(s)) for n, s in self.shapes.items()}


def tokens() -> np.ndarray:
    """The input ids of every case."""
    return np.random.default_rng(3).integers(0, BASE["vocab_size"], (1, TOKENS)).astype(np.int32)


def load() -> dict[str, Stored]:
    """Every stored case."""
    with np.load(FILE) as file:
        described = json.loads(file["description"].tobytes())
        return {case: Stored(**described[case], logits=file[case]) for case in CASES}


def _base() -> Any:
    import torch
    import transformers

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**BASE)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = families.drawn("peft", name, tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(drawn))
    return model


def recompute(case: str) -> Stored:
    """Make PEFT's model, save its adapters, draw them anew, and run it."""
    import peft
    import torch

    model = _base()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    base = model.config.to_dict()
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **CASES[case]))
    state = peft.get_peft_model_state_dict(adapted)
    drawn = {n: families.drawn("peft", n, tuple(t.shape)) for n, t in state.items()}
    peft.set_peft_model_state_dict(adapted, {n: torch.from_numpy(t) for n, t in drawn.items()})
    with tempfile.TemporaryDirectory() as directory:
        adapted.save_pretrained(directory)
        values = json.loads(Path(directory, "adapter_config.json").read_text())
    with torch.no_grad():
        logits = adapted.eval()(torch.from_numpy(tokens()).long()).logits.numpy()
    kept = {name: tuple(array.shape) for name, array in drawn.items()}
    return Stored(_plain(base), shapes, _plain(values), kept, logits)


def logits_of(directory: Path) -> np.ndarray:
    """What PEFT's model says with the adapters of a directory."""
    import peft
    import torch

    model = peft.PeftModel.from_pretrained(_base(), str(directory)).eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens()).long()).logits.numpy()


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it; sets that came as lists in order."""
    made = json.loads(json.dumps(values, default=str))
    targets = made.get("target_modules")
    return made | ({"target_modules": sorted(targets)} if isinstance(targets, list) else {})


def write() -> None:
    """Recompute every case and store the results."""
    arrays, described = {}, {}
    for case in CASES:
        entry = dataclasses.asdict(recompute(case))
        arrays[case] = entry.pop("logits")
        described[case] = entry
    text = np.frombuffer(json.dumps(described).encode(), np.uint8)
    np.savez_compressed(FILE, description=text, **arrays)


def check() -> None:
    """Recompute every case and compare; tolerance 1e-5 on logits of order one."""
    stored = load()
    for case in CASES:
        compare(case, recompute(case), stored[case])


def compare(case: str, found: Stored, stored: Stored) -> None:
    """Fail, naming the case, where a recomputed result differs from the stored one."""
    np.testing.assert_allclose(found.logits, stored.logits, atol=APART, rtol=0, err_msg=case)
    for key in ("base_shapes", "shapes"):
        shapes = {name: tuple(shape) for name, shape in getattr(stored, key).items()}
        assert getattr(found, key) == shapes, (case, key)
    drop = {"peft_version": None, "revision": None}
    assert found.config | drop == stored.config | drop, case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="recompute and store")
    action.add_argument("--check", action="store_true", help="recompute and compare")
    write() if parser.parse_args().write else check()


if __name__ == "__main__":
    main()
