"""What transformers computes for models with Pixtral's tower: tiny ones on a text with pictures.

``config.json``, shapes, tokens, logits and greedily chosen tokens are stored; weights and pictures
are drawn anew. Needs torch and transformers for :func:`recompute` only::

    python -m tests.oracle.pixtral --write    # recompute and store
    python -m tests.oracle.pixtral --check    # recompute and compare with what is stored
"""

import argparse
import ast
import dataclasses
import json
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
from tests.oracle import multimodal
from tests.oracle.families import Tensors, drawn
from tests.oracle.multimodal import IMAGE
from tests.oracle.qwen_vl import greedy, pictures, torch_model

FILE = Path(__file__).with_suffix(".npz")
BREAK, END = 58, 59
"""Ids of the tokens behind a line of an image, and behind the last one."""
TEXTS = {IMAGE: "[IMG]", BREAK: "[IMG_BREAK]", END: "[IMG_END]"}
PROMPT = "t5 t6 {0} t7 t8 t9 {1} t33 t44"
"""A text with numbers of pictures."""
SIZE = {"longest_edge": 48}
"""The first picture, of 40 by 64 pixels, is made smaller; the second, of 24 by 16, is not."""
_MERGED = multimodal.CONFIGS["mistral3"]
_VISION = _MERGED["vision_config"] | {"patch_size": 4, "image_size": 48, "hidden_act": "silu"}
CASES: dict[str, dict[str, Any]] = {
    "mistral3": _MERGED | {"vision_config": _VISION | {"num_hidden_layers": 2}},
    "mistral3-plain": _MERGED
    | {
        "text_config": _MERGED["text_config"] | {"model_type": "ministral3", "rms_norm_eps": 1e-3},
        "vision_config": _VISION
        | {"hidden_act": "gelu", "rope_parameters": {"rope_type": "axial", "rope_theta": 50.0}},
        "spatial_merge_size": 1,
        "multimodal_projector_bias": True,
        "projector_hidden_act": "relu",
        "vision_feature_layer": [-1],
        "tie_word_embeddings": False,
    },
    "llava": {
        "text_config": _MERGED["text_config"],
        "vision_config": _VISION | {"num_hidden_layers": 3, "patch_size": 8},
        "image_token_index": IMAGE,
        "image_seq_length": 1,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "full",
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
    pixels: np.ndarray
    """``[2, 3, h, w]``, padded on the right and below."""
    sizes: np.ndarray
    """``[2, 2]``, height and width of each picture in pixels."""
    logits: np.ndarray
    """``[t, v]``, float32."""
    generated: np.ndarray
    """The likeliest token at each step."""


ARRAYS = tuple(field.name for field in dataclasses.fields(Stored))[2:]


def sizes_of(case: str) -> dict[str, int]:
    """Settings of ``processor_config.json``."""
    merge = CASES[case].get("spatial_merge_size", 2 if case.startswith("mistral3") else 1)
    return {"patch_size": CASES[case]["vision_config"]["patch_size"], "spatial_merge_size": merge}


def weights(case: str, shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """All tensors of a case."""
    return Tensors({name: drawn(case, name, shape) for name, shape in shapes.items()})


def load(case: str) -> Stored:
    """One stored case."""
    with np.load(FILE) as file:
        entry = json.loads(file["description"].tobytes())[case]
        arrays = {name: file[f"{case}/{name}"] for name in ARRAYS}
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


def image_text(case: str, size: Any) -> str:
    """Text of an image of this height and width, by the code of transformers' processor; the class
    itself needs torchvision, so its method is taken from the file."""
    import transformers

    file = Path(transformers.__file__).parent / "models" / "pixtral" / "processing_pixtral.py"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    [method] = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "replace_image_token"
    )
    names: dict[str, Any] = {}
    exec(compile(ast.Module([method], []), str(file), "exec"), names)
    marks = dict(zip(("image_token", "image_break_token", "image_end_token"), TEXTS.values()))
    processor = types.SimpleNamespace(**sizes_of(case), **marks)
    return names["replace_image_token"](processor, {"image_sizes": [size]}, 0)


def their_inputs(case: str) -> dict[str, Any]:
    """What transformers' model takes for :data:`PROMPT`."""
    import torch
    import transformers

    sizes = sizes_of(case)
    side = sizes["patch_size"] * sizes["spatial_merge_size"]
    steps = transformers.PixtralImageProcessorPil(size=SIZE, patch_size=side)
    given = {**steps(pictures(), return_tensors="pt")}
    ids, by_text = list[int](), {text: number for number, text in TEXTS.items()}
    for word in PROMPT.split():
        if word[0] != "{":
            ids.append(int(word[1:]))
            continue
        marks = image_text(case, given["image_sizes"][int(word[1:-1])]).replace("][", "] [")
        ids += [by_text[mark] for mark in marks.split()]
    return {"input_ids": torch.tensor([ids]), **given}


def run(case: str, model: Any) -> dict[str, np.ndarray]:
    """The arrays of :class:`Stored` from a model."""
    import torch

    inputs = their_inputs(case)
    with torch.no_grad():
        logits = model(**inputs).logits[0].numpy()
    return {
        "tokens": inputs["input_ids"][0].numpy().astype(np.int32),
        "pixels": inputs["pixel_values"].numpy(),
        "sizes": inputs["image_sizes"].numpy().astype(np.int32),
        "logits": logits,
        "generated": greedy(model, inputs),
    }


def recompute(case: str) -> Stored:
    """Run one case with transformers."""
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        shapes = save(case, directory)
        config = json.loads((directory / "config.json").read_text())
        found = run(case, torch_model(directory))
    return Stored(config, shapes, **found)


def write() -> None:
    """Recompute all cases and store the results."""
    results = {case: recompute(case) for case in CASES}
    described = {case: {"config": r.config, "shapes": r.shapes} for case, r in results.items()}
    text = np.frombuffer(json.dumps(described, indent=1).encode(), np.uint8)
    arrays = {f"{case}/{name}": getattr(r, name) for case, r in results.items() for name in ARRAYS}
    np.savez_compressed(FILE, description=text, **arrays)


def check() -> None:
    """Fail, naming the case, where a recomputed result differs from the stored one; tolerance 1e-5
    on logits of order one."""
    for case in CASES:
        found, stored = recompute(case), load(case)
        for name in ("logits", "pixels"):
            pair = getattr(found, name), getattr(stored, name)
            np.testing.assert_allclose(*pair, atol=1e-5, rtol=0, err_msg=case)
        for name in ("tokens", "sizes", "generated"):
            pair = getattr(found, name), getattr(stored, name)
            np.testing.assert_array_equal(*pair, err_msg=case)
        assert found.shapes == stored.shapes, case
        without = [{k: v for k, v in r.config.items() if k != "transformers_version"}
                   for r in (found, stored)]  # fmt: skip
        assert without[0] == without[1], case


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle.pixtral")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="recompute and store")
    action.add_argument("--check", action="store_true", help="recompute and compare")
    write() if parser.parse_args().write else check()


if __name__ == "__main__":
    main()
