"""What transformers computes for Whisper: spectrograms, and logits and tokens of a tiny model.

Its windows are of one second, and its weights are drawn as those of ``tests.oracle.families``::

    python -m tests.oracle.whisper --write    # recompute and store
    python -m tests.oracle.whisper --check    # recompute and compare with what is stored
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tests.oracle import families
from tests.oracle.processors import APART

FILE = Path(__file__).with_suffix(".npz")
CONFIG: dict[str, Any] = {
    "vocab_size": 100,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 80,
    "num_mel_bins": 8,
    "max_source_positions": 50,
    "max_target_positions": 40,
    "activation_function": "gelu",
    "decoder_start_token_id": 41,
    "pad_token_id": 40,
    "bos_token_id": 40,
    "eos_token_id": 40,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "scale_embedding": False,
}
GENERATION: dict[str, Any] = {
    "decoder_start_token_id": 41,
    "pad_token_id": 40,
    "bos_token_id": 40,
    "eos_token_id": 40,
    "is_multilingual": True,
    "lang_to_id": {"<|en|>": 42, "<|fr|>": 43},
    "task_to_id": {"transcribe": 45, "translate": 44},
    "prev_sot_token_id": 46,
    "no_timestamps_token_id": 48,
    "suppress_tokens": [3, 5, 9, 41, 44, 45, 46, 47],
    "begin_suppress_tokens": [7, 40],
    "max_initial_timestamp_index": 20,
    "max_length": 40,
}
FEATURES: dict[str, Any] = {"feature_size": 8, "chunk_length": 1}
SCALE = 0.4
"""Of all matrices: so that tokens depend on the audio, and by more than rounding."""
LOGITS_TOKENS = np.array([[41, 42, 45, 48, 1, 2, 39, 60, 99, 0]], np.int64)
FRAMES = slice(0, None, 50)
"""Frames of long spectrograms that are stored."""
CASES: dict[str, dict[str, Any]] = {
    "plain": {"samples": 9_000, "language": "en", "task": "transcribe"},
    "translate": {"samples": 16_000, "language": "fr", "task": "translate"},
    "detected": {"samples": 12_000, "task": "transcribe"},
    "prompt": {"samples": 9_000, "language": "en", "task": "transcribe", "prompt": [1, 2, 3]},
    "timestamps": {"samples": 9_000, "language": "en", "task": "transcribe", "timestamps": True},
    "second": {"samples": 16_000, "language": "en", "task": "transcribe", "timestamps": True},
    "long": {"samples": 57_123, "language": "fr", "task": "transcribe", "timestamps": True},
    "longer": {"samples": 90_000, "task": "translate", "timestamps": True},
}


def wave(samples: int) -> np.ndarray:
    """Some sounds, float32."""
    draw = np.random.Generator(np.random.Philox(key=samples))
    time = np.arange(samples) / 16_000
    tones = sum(
        draw.random() * np.sin(2 * np.pi * draw.uniform(80, 4000) * time * (1 + 0.3 * time))
        for _ in range(4)
    )
    noise = draw.normal(size=samples) * np.repeat(draw.random(samples // 800 + 1), 800)[:samples]
    return np.asarray(0.1 * tones + 0.05 * noise, np.float32)


def shapes() -> dict[str, tuple[int, ...]]:
    """Tensors by name as the file of a published model holds them."""
    return {name: tuple(shape) for name, shape in load()["shapes"].items()}


def tensors() -> families.Tensors:
    """The tiny model's weights."""
    return families.Tensors(
        {name: families.drawn("whisper", name, shape, SCALE) for name, shape in shapes().items()}
    )


def directory(path: Path) -> Path:
    """The tiny model as a published one: ``config.json``, weights, tokenizer, settings."""
    import tokenizers
    from safetensors.numpy import save_file

    path.mkdir(parents=True, exist_ok=True)
    stored = load()
    for name in ("config", "generation_config", "preprocessor_config"):
        (path / f"{name}.json").write_text(json.dumps(stored[name]))
    save_file(tensors(), path / "model.safetensors", metadata={"format": "pt"})
    words = {f"w{i}": i for i in range(40)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    marks = ["<|endoftext|>", "<|startoftranscript|>", *GENERATION["lang_to_id"]]
    marks += ["<|translate|>", "<|transcribe|>", "<|startofprev|>", "<|nospeech|>"]
    marks += ["<|notimestamps|>", *(f"<|{i / 50:.2f}|>" for i in range(51))]
    backend.add_special_tokens(marks)
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": marks[0]}))
    return path


def _model(path: Path) -> Any:
    """Transformers' model with the tiny model's weights."""
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    cls = transformers.WhisperForConditionalGeneration
    config = transformers.WhisperConfig(**CONFIG, architectures=[cls.__name__])
    made = cls(config)
    made.generation_config = transformers.GenerationConfig(**GENERATION)
    made.save_pretrained(path)
    file = path / "model.safetensors"
    weights = {
        name: families.drawn("whisper", name, array.shape, SCALE)
        for name, array in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
    return cls.from_pretrained(path, dtype=torch.float32).eval()


def _generated(model: Any, features: Any, case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Tokens of a case, and of each segment its start, end and number of tokens."""
    import torch

    prompt = case.get("prompt")
    out = model.generate(
        features,
        language=case.get("language"),
        task=case["task"],
        return_timestamps=case.get("timestamps", False),
        prompt_ids=None if prompt is None else torch.tensor([46, *prompt]),
        return_segments=True,
    )
    (segments,) = out["segments"]
    found = [[float(s["start"]), float(s["end"]), len(s["tokens"])] for s in segments]
    return {"tokens": out["sequences"][0].numpy(), "segments": np.array(found)}


def recompute() -> dict[str, np.ndarray]:
    """Everything that is stored."""
    import torch
    from safetensors.numpy import load_file
    from transformers import WhisperFeatureExtractor

    results: dict[str, Any] = {}
    for bands, samples in ((80, 100_001), (128, 500_000)):
        found = _features(WhisperFeatureExtractor(feature_size=bands), samples, 480_000)
        results[f"spectrogram-{bands}"] = found[0, :, FRAMES]
    with tempfile.TemporaryDirectory() as made:
        model = _model(Path(made))
        extractor = WhisperFeatureExtractor(**FEATURES)
        extractor.save_pretrained(made)
        described = {
            name: json.loads((Path(made) / f"{name}.json").read_text())
            for name in ("config", "generation_config", "preprocessor_config")
        }
        file = load_file(Path(made) / "model.safetensors")
        described["shapes"] = {name: array.shape for name, array in file.items()}
    text = json.dumps(described, indent=1)
    results["description"] = np.frombuffer(text.encode(), np.uint8)
    with torch.no_grad():
        features = torch.tensor(_features(extractor, 9_000, 16_000))
        given = {"input_features": features, "decoder_input_ids": torch.tensor(LOGITS_TOKENS)}
        results["logits"] = model(**given).logits.numpy()
        for name, case in CASES.items():
            features = torch.tensor(_features(extractor, case["samples"], 16_000))
            found = _generated(model, features, case)
            results |= {f"{name}-{key}": value for key, value in found.items()}
    return results


def _features(extractor: Any, samples: int, window: int) -> np.ndarray:
    """Transformers' spectrogram of :func:`wave`: one that is longer than a window is not cut."""
    whole = samples > window
    options = {"truncation": False, "padding": "longest"} if whole else {}
    return extractor(wave(samples), sampling_rate=16_000, **options)["input_features"]


def load() -> dict[str, Any]:
    """What is stored, with ``config.json`` and the other files by name."""
    with np.load(FILE) as file:
        found: dict[str, Any] = {name: file[name] for name in file.files}
    return found | json.loads(found.pop("description").tobytes())


def compare(found: dict[str, np.ndarray]) -> None:
    """Fail where a recomputed result differs from the stored one."""
    with np.load(FILE) as file:
        assert set(file.files) == found.keys()
        for name in sorted(found.keys() - {"description"}):
            np.testing.assert_allclose(found[name], file[name], atol=APART, rtol=0, err_msg=name)
        old, new = (json.loads(of["description"].tobytes().decode()) for of in (file, found))
    for key in old:
        for part in old[key].keys() - {"transformers_version"}:
            assert old[key][part] == json.loads(json.dumps(new[key][part])), f"{key}: {part}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle.whisper")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="recompute and store")
    action.add_argument("--check", action="store_true", help="recompute and compare")
    if parser.parse_args().write:
        np.savez_compressed(FILE, **recompute())  # type: ignore[arg-type]
    else:
        compare(recompute())


if __name__ == "__main__":
    main()
