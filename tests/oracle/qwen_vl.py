"""What transformers computes for Qwen-VL: tiny models on a text with two pictures.

``config.json``, shapes, tokens, logits and greedily chosen tokens are stored; weights and pictures
are drawn anew. Needs torch and transformers for :func:`recompute` only::

    python -m tests.oracle.qwen_vl --write    # recompute and store
    python -m tests.oracle.qwen_vl --check    # recompute and compare with what is stored
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tests.oracle import multimodal
from tests.oracle.families import Tensors, drawn
from tests.oracle.multimodal import BEGIN, END, IMAGE

FILE = Path(__file__).with_suffix(".npz")
NEW = 12
"""Tokens that are generated."""
SIZES = ((40, 64), (24, 16))
"""Heights and widths of the pictures."""
PROCESSOR: dict[str, Any] = {"patch_size": 4, "min_pixels": 64, "max_pixels": 4096}
"""``preprocessor_config.json`` without its class."""
_SECOND = multimodal.CONFIGS["qwen2_5_vl"]
_THIRD = multimodal.CONFIGS["qwen3_vl"]
CASES: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": _SECOND
    | {
        "vision_config": _SECOND["vision_config"]
        | {"depth": 3, "fullatt_block_indexes": [1], "window_size": 16},
    },
    "qwen2_5_vl-tied": _SECOND
    | {
        "text_config": _SECOND["text_config"] | {"max_position_embeddings": 64},
        "vision_config": _SECOND["vision_config"]
        | {"hidden_act": "gelu", "spatial_merge_size": 1, "window_size": 8},
        "tie_word_embeddings": True,
    },
    "qwen3_vl": _THIRD
    | {
        "vision_config": _THIRD["vision_config"] | {"depth": 3, "deepstack_visual_indexes": [0, 2]},
    },
    "qwen3_vl-plain": _THIRD
    | {
        "text_config": _THIRD["text_config"] | {"attention_bias": True},
        "vision_config": _THIRD["vision_config"]
        | {"deepstack_visual_indexes": [], "num_position_embeddings": 9, "temporal_patch_size": 1},
        "tie_word_embeddings": True,
    },
}
"""Settings of transformers' config classes; a case's name begins with its type of model."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """One model, and what transformers says of it."""

    config: dict[str, Any]
    """``config.json`` as ``save_pretrained`` writes it."""
    shapes: dict[str, tuple[int, ...]]
    """Tensors by name as safetensors files hold them."""
    tokens: np.ndarray
    """``[t]``, the image tokens among them."""
    logits: np.ndarray
    """``[t, v]``, float32."""
    generated: np.ndarray
    """``[NEW]``, the likeliest token at each step."""


def pictures() -> list[np.ndarray]:
    """Pictures ``[h, w, 3]``, uint8."""
    draw = np.random.default_rng(7)
    return [draw.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


def processor(case: str) -> dict[str, Any]:
    """``preprocessor_config.json`` of a case, without its class."""
    vision = CASES[case]["vision_config"]
    return PROCESSOR | {
        "merge_size": vision.get("spatial_merge_size", 2),
        "temporal_patch_size": vision.get("temporal_patch_size", 2),
    }


def weights(case: str, shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """All tensors of a case."""
    return Tensors({name: drawn(case, name, shape) for name, shape in shapes.items()})


def load(case: str) -> Stored:
    """One stored case."""
    with np.load(FILE) as file:
        entry = json.loads(file["description"].tobytes())[case]
        arrays = {name: file[f"{case}/{name}"] for name in ("tokens", "logits", "generated")}
    shapes = {name: tuple(shape) for name, shape in entry["shapes"].items()}
    return Stored(config=entry["config"], shapes=shapes, **arrays)


def save(case: str, directory: Path) -> dict[str, tuple[int, ...]]:
    """Write a case as transformers writes a model; the shapes of its tensors."""
    import transformers
    from safetensors.numpy import load_file, save_file

    config = transformers.CONFIG_MAPPING[case.partition("-")[0]](**CASES[case])
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(directory)
    file = directory / "model.safetensors"
    shapes = {name: tensor.shape for name, tensor in load_file(file).items()}
    save_file(weights(case, shapes), file, metadata={"format": "pt"})
    return shapes


def torch_model(directory: Path) -> Any:
    """The model in a directory, float32."""
    import torch
    import transformers

    cls: Any = transformers.AutoModelForImageTextToText
    model, report = cls.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def run(case: str, model: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, logits and generated tokens of a model."""
    import torch
    import transformers

    given = transformers.Qwen2VLImageProcessorPil(**processor(case))(
        pictures(), return_tensors="pt"
    )
    merge = processor(case)["merge_size"] ** 2
    counts = [int(grid.prod()) // merge for grid in given["image_grid_thw"]]
    first, second = ([BEGIN, *[IMAGE] * count, END] for count in counts)
    tokens = torch.tensor([[5, 6, *first, 7, 8, 9, *second, 33, 44]])
    images = {**given, "mm_token_type_ids": (tokens == IMAGE).int()}
    with torch.no_grad():
        logits = model(input_ids=tokens, **images).logits[0].numpy()
        found = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            **images,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
        )
    return tokens[0].numpy(), logits, found[0, tokens.shape[1] :].numpy()


def recompute(case: str) -> Stored:
    """Run one case with transformers."""
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        shapes = save(case, directory)
        config = json.loads((directory / "config.json").read_text())
        tokens, logits, generated = run(case, torch_model(directory))
    return Stored(config, shapes, tokens.astype(np.int32), logits, generated.astype(np.int32))


def write() -> None:
    """Recompute all cases and store the results."""
    results = {case: recompute(case) for case in CASES}
    described = {case: {"config": r.config, "shapes": r.shapes} for case, r in results.items()}
    text = np.frombuffer(json.dumps(described, indent=1).encode(), np.uint8)
    arrays = {
        f"{case}/{name}": getattr(r, name)
        for case, r in results.items()
        for name in ("tokens", "logits", "generated")
    }
    np.savez_compressed(FILE, description=text, **arrays)


def check() -> None:
    """Fail, naming the case, where a recomputed result differs from the stored one; tolerance 1e-5
    on logits of order one."""
    for case in CASES:
        found, stored = recompute(case), load(case)
        np.testing.assert_allclose(found.logits, stored.logits, atol=1e-5, rtol=0, err_msg=case)
        np.testing.assert_array_equal(found.generated, stored.generated, err_msg=case)
        assert found.shapes == stored.shapes, case
        without = [{k: v for k, v in r.config.items() if k != "transformers_version"}
                   for r in (found, stored)]  # fmt: skip
        assert without[0] == without[1], case


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle.qwen_vl")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="recompute and store")
    action.add_argument("--check", action="store_true", help="recompute and compare")
    write() if parser.parse_args().write else check()


if __name__ == "__main__":
    main()
