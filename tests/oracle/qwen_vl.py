"""What transformers computes for Qwen-VL: tiny models on texts with pictures.

``config.json``, shapes, tokens, logits and greedily chosen tokens are stored, the latter of several
conversations; weights and pictures are drawn anew. Needs torch and transformers for
:func:`recompute` only::

    python -m tests.oracle.qwen_vl --write    # recompute and store
    python -m tests.oracle.qwen_vl --check    # recompute and compare with what is stored
"""

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tests.oracle import multimodal
from tests.oracle.families import Tensors, drawn
from tests.oracle.multimodal import BEGIN, END, IMAGE
from tests.oracle.processors import APART

FILE = Path(__file__).with_suffix(".npz")
NEW = 12
"""Tokens that are generated."""
CLEAR = 1e-3
"""Least lead of the likeliest token's logit at every step, so that no rounding changes it."""
CONVERSATIONS = {
    "text": "t4 t5 t6 t7 t9",
    "one": "t5 {0} t7",
    "turns": "t3 t8 {1} t7 t4 t44 t45 t3 t9 t10 {0} t11 {1} t12 t4 t46 t3 t13 t14 t4",
}
"""Texts with numbers of pictures: none, one, and several over turns."""
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}t3 {% endif %}"
    "{% for p in m.content %}{% if p.type == 'image' %}<begin><image><end> "
    "{% else %}{{ p.text }} {% endif %}{% endfor %}"
    "{% if m.role == 'user' %}t4 {% endif %}{% endfor %}"
)
"""By which :func:`messages` become the conversation ``turns``."""
SIZES = ((40, 64), (24, 16))
"""Heights and widths of the pictures."""
PROCESSOR: dict[str, Any] = {"patch_size": 4, "min_pixels": 64, "max_pixels": 4096}
"""``preprocessor_config.json`` without its class."""
_SECOND = multimodal.CONFIGS["qwen2_5_vl"]
_THIRD = multimodal.CONFIGS["qwen3_vl"]
_DELTA = multimodal.CONFIGS["qwen3_5"]
_THREE_TURNS = _DELTA["text_config"]["rope_parameters"] | {
    "mrope_section": [1, 1, 1],
    "partial_rotary_factor": 0.75,
}
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
    "qwen3_vl_moe": multimodal.CONFIGS["qwen3_vl_moe"],
    "qwen3_5": _DELTA
    | {
        "text_config": _DELTA["text_config"]
        | {"rope_parameters": _THREE_TURNS, "linear_key_head_dim": 16},
        "vision_config": _DELTA["vision_config"] | {"depth": 3},
    },
    "qwen3_5-tied": _DELTA
    | {
        "text_config": _DELTA["text_config"] | {"max_position_embeddings": 64},
        "tie_word_embeddings": True,
    },
    "qwen3_5_moe": multimodal.CONFIGS["qwen3_5_moe"],
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
    answers: dict[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    """Tokens of the conversations, and those generated after them."""


def pictures() -> list[np.ndarray]:
    """Pictures ``[h, w, 3]``, uint8."""
    draw = np.random.default_rng(7)
    return [draw.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


def messages(urls: Sequence[str]) -> list[dict[str, Any]]:
    """The conversation ``turns`` as OpenAI's clients send it, given URLs of the pictures."""
    turns: list[dict[str, Any]] = []
    for turn in CONVERSATIONS["turns"].removeprefix("t3 ").split(" t3 "):
        said, answer = turn.removesuffix(" t4").partition(" t4 ")[::2]
        parts: list[dict[str, Any]] = []
        for word in said.split():
            if word[0] == "{":
                parts.append({"type": "image_url", "image_url": {"url": urls[int(word[1:-1])]}})
            elif parts and parts[-1]["type"] == "text":
                parts[-1]["text"] += f" {word}"
            else:
                parts.append({"type": "text", "text": word})
        turns.append({"role": "user", "content": parts})
        turns += [{"role": "assistant", "content": answer}] if answer else []
    return turns


def processor(case: str) -> dict[str, Any]:
    """``preprocessor_config.json`` of a case, without its class."""
    vision = CASES[case]["vision_config"]
    return PROCESSOR | {
        "merge_size": vision.get("spatial_merge_size", 2),
        "temporal_patch_size": vision.get("temporal_patch_size", 2),
    }


def weights(case: str, shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """All tensors of a case."""

    def about(name: str) -> float:
        # norms of Qwen 3.5's decoder add one to their scale, but for those of gated delta nets
        text = case.startswith("qwen3_5") and "language_model" in name
        return 0.0 if text and "linear_attn" not in name else 1.0

    return Tensors(
        {name: drawn(case, name, shape, norms_about=about(name)) for name, shape in shapes.items()}
    )


def conversations(case: str) -> dict[str, str]:
    """The conversations of a case: of those that are no variant of another."""
    return {} if "-" in case else CONVERSATIONS


def load(case: str) -> Stored:
    """One stored case."""
    with np.load(FILE) as file:
        entry = json.loads(file["description"].tobytes())[case]
        arrays = {name: file[f"{case}/{name}"] for name in ("tokens", "logits", "generated")}
        answers = {
            name: (file[f"{case}/{name}/tokens"], file[f"{case}/{name}/generated"])
            for name in conversations(case)
        }
    shapes = {name: tuple(shape) for name, shape in entry["shapes"].items()}
    return Stored(config=entry["config"], shapes=shapes, answers=answers, **arrays)


def save(case: str, directory: Path) -> dict[str, tuple[int, ...]]:
    """Write a case as transformers writes a model; the shapes of its tensors."""
    import transformers
    from safetensors.numpy import load_file, save_file

    config = transformers.CONFIG_MAPPING[case.partition("-")[0]](**CASES[case])
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(directory)
    file = directory / "model.safetensors"
    shapes = {name: tensor.shape for name, tensor in load_file(file).items()}
    shapes = {name: as_published(name, shape) for name, shape in shapes.items()}
    save_file(weights(case, shapes), file, metadata={"format": "pt"})
    return shapes


def as_published(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as publishers' files have it: transformers leaves the joined experts of a fresh model
    ``[out, in]``, those of Qwen3-VL's files are ``[in, out]``, and it reads both."""
    joined = name.endswith(("experts.gate_up_proj", "experts.down_proj"))
    return (shape[0], shape[2], shape[1]) if joined else shape


def torch_model(directory: Path) -> Any:
    """The model in a directory, float32."""
    import torch
    import transformers

    cls: Any = transformers.AutoModelForImageTextToText
    model, report = cls.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def their_inputs(case: str, text: str) -> dict[str, Any]:
    """What transformers' model takes for a text: words ``t5``, and numbers of pictures ``{0}``."""
    import torch
    import transformers

    words, drawings = text.split(), pictures()
    shown = [drawings[int(word[1:-1])] for word in words if word[0] == "{"]
    given: dict[str, Any] = {}
    if shown:
        steps = transformers.Qwen2VLImageProcessorPil(**processor(case))
        given = {**steps(shown, return_tensors="pt")}
    merge = processor(case)["merge_size"] ** 2
    counts = iter([int(grid.prod()) // merge for grid in given.get("image_grid_thw", [])])
    ids: list[int] = []
    for word in words:
        ids += [BEGIN, *[IMAGE] * next(counts), END] if word[0] == "{" else [int(word[1:])]
    tokens = torch.tensor([ids])
    return {"input_ids": tokens, "mm_token_type_ids": (tokens == IMAGE).int(), **given}


def greedy(model: Any, inputs: dict[str, Any]) -> np.ndarray:
    """The likeliest token at each of :data:`NEW` steps."""
    import torch

    tokens = inputs["input_ids"]
    with torch.no_grad():
        found = model.generate(
            attention_mask=torch.ones_like(tokens),
            **inputs,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    best = torch.stack(found.logits).topk(2, dim=-1).values
    assert (best[..., 0] - best[..., 1]).min() > CLEAR, "two tokens are as likely"
    return found.sequences[0, tokens.shape[1] :].numpy().astype(np.int32)


def run(case: str, model: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, logits and generated tokens of a model."""
    import torch

    inputs = their_inputs(case, "t5 t6 {0} t7 t8 t9 {1} t33 t44")
    with torch.no_grad():
        logits = model(**inputs).logits[0].numpy()
    return inputs["input_ids"][0].numpy(), logits, greedy(model, inputs)


def recompute(case: str) -> Stored:
    """Run one case with transformers."""
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        shapes = save(case, directory)
        config = json.loads((directory / "config.json").read_text())
        model = torch_model(directory)
        tokens, logits, generated = run(case, model)
        inputs = {n: their_inputs(case, text) for n, text in conversations(case).items()}
        answers = {
            name: (given["input_ids"][0].numpy().astype(np.int32), greedy(model, given))
            for name, given in inputs.items()
        }
    return Stored(config, shapes, tokens.astype(np.int32), logits, generated, answers)


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
    for case, result in results.items():
        for name, (tokens, generated) in result.answers.items():
            arrays[f"{case}/{name}/tokens"] = tokens
            arrays[f"{case}/{name}/generated"] = generated
    np.savez_compressed(FILE, description=text, **arrays)


def check() -> None:
    """Fail, naming the case, where a recomputed result differs from the stored one by more
    than processors do."""
    for case in CASES:
        found, stored = recompute(case), load(case)
        np.testing.assert_allclose(found.logits, stored.logits, atol=APART, rtol=0, err_msg=case)
        np.testing.assert_array_equal(found.generated, stored.generated, err_msg=case)
        for name, (_, generated) in found.answers.items():
            np.testing.assert_array_equal(generated, stored.answers[name][1], err_msg=name)
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
