"""Tiny random models of every family with a form in GGUF: llama.cpp computes what we do.

``python -m tests.oracle.llama_cpp_models PYTHON`` exports each model, lets llama.cpp continue a
prompt greedily and prints a table; ``PYTHON`` is one with the package xllamacpp. The last printed
table stands in ``llama_cpp_models.txt``.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tests.train.tiny_families import families

from ziggurat.data.huggingface import HuggingFaceTokenizer
from ziggurat.data.tokenizers import train_bpe
from ziggurat.models import FAMILIES, LanguageModel
from ziggurat.models.loading.gguf_output import export_gguf
from ziggurat.models.loading.pretrained import Pretrained

PROMPT = [72, 101, 108, 108, 111, 32, 119, 111, 114, 108, 100, 44, 32, 105, 116, 39]
COUNT = 12
STORED = Path(__file__).with_name("llama_cpp_models.txt")
SIZES = {
    "vocab_size": 300, "d_model": 64, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "d_ff": 96,
    "head_dim": 32, "max_sequence_length": 128, "d_ff_expert": 64, "d_ff_shared": 64,
    "query_scale": 32.0, "window": 8, "norm_eps": 1e-5, "tie_embeddings": True,
}  # fmt: skip
_NARROW: dict[str, Any] = {"head_dim": 16, "window": None}
_UNTIED: dict[str, Any] = {"tie_embeddings": False, "window": None}
_GRANITE = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 2.0,
}
OWN: dict[str, dict[str, Any]] = {
    "cohere": _NARROW,
    "cohere2": {"head_dim": 16},
    "gemma2": {"logit_softcap": 30.0, "attention_softcap": 50.0},
    "granite": _GRANITE,
    "granitemoe": _GRANITE,
    "llama": {"window": None},
    "mixtral": _UNTIED,
    "nemotron": _NARROW | _UNTIED,
    "olmo2": _NARROW | _UNTIED,
    "olmoe": _UNTIED | {"n_kv_heads": 4, "head_dim": 16, "d_ff": None},
    "phi": _UNTIED | {"n_kv_heads": 4, "head_dim": 16},
    "phi3": _NARROW,
    "qwen2": _NARROW,
    "qwen2_moe": _NARROW | _UNTIED,
    "qwen3": {"window": None},
    "qwen3_moe": {"window": None, "normalise_weights": True},
    "smollm3": {"window": None},
    "stablelm": _UNTIED | {"head_dim": 16},
    "starcoder2": _NARROW,
}
"""What a family's architecture there asks for."""

WORKER = """
import json, sys, urllib.request, xllamacpp
path, prompt, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = path, 256, 1
params.warmup, params.verbosity, params.cpuparams.n_threads = False, -1, 1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(params)
body = {"prompt": prompt, "n_predict": count, "temperature": 0, "n_probs": 2, "ignore_eos": True}
body |= {"return_tokens": True, "cache_prompt": False}
request = urllib.request.Request(
    server.listening_address + "/completion",
    json.dumps(body).encode(),
    {"Content-Type": "application/json"},
)
found = json.load(urllib.request.urlopen(request))
scores = [[one["id"], one["logprob"]] for one in found["completion_probabilities"]]
print("FOUND" + json.dumps([found["tokens"], scores]))
"""


def tokenizer() -> HuggingFaceTokenizer:
    """A small byte-level BPE: llama.cpp reads none without merges."""
    return train_bpe(["the quick brown fox jumps over the lazy dog, and it did so again"] * 9, 300)


def model_of(name: str) -> Pretrained:
    """A family's tiny model, with weights that float16 holds."""
    tiny = families()[name]
    known = {field.name for field in dataclasses.fields(tiny)}
    given = {key: value for key, value in (SIZES | OWN.get(name, {})).items() if key in known}
    model = LanguageModel.build(dataclasses.replace(tiny, **given))
    draw = np.random.default_rng(0)

    def leaf(path: Any, shape: Any) -> np.ndarray:
        key = jax.tree_util.keystr(path)
        spread = 0.1 if "norm" in key or "bias" in key else 2.0 * shape.shape[-1] ** -0.5
        values = draw.normal(size=shape.shape) * spread
        values += 1.0 if "norm" in key and "scale" in key else 0.0
        return values.astype(np.float16).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(leaf, model.abstract)
    return Pretrained(model, params, tokenizer(), name, name)


def ours(
    made: Pretrained, tokens: list[int], count: int
) -> tuple[list[int], list[float], list[float]]:
    """Greedy tokens other than eos, the log-probability of each, and its lead over the next."""
    length, done = len(tokens) + count, list(tokens)
    scores, leads = [], []
    logits = jax.jit(lambda params, ids: made.model.logits(params, ids))
    ends = jnp.asarray(made.tokenizer.eos_ids)
    for _ in range(count):
        padded = jnp.asarray([done + [0] * (length - len(done))])
        found = logits(made.params, padded)[0, len(done) - 1].astype(jnp.float32)
        best, numbers = jax.lax.top_k(jax.nn.log_softmax(found.at[ends].set(-jnp.inf)), 2)
        done.append(int(numbers[0]))
        scores.append(float(best[0]))
        leads.append(float(best[0] - best[1]))
    return done[len(tokens) :], scores, leads


def theirs(python: str, path: Path, tokens: list[int], count: int) -> Any:
    """llama.cpp's greedy tokens, and those that end a character with their log-probabilities."""
    command = [python, "-c", WORKER, str(path), json.dumps(tokens), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    if "FOUND" not in done.stdout:
        raise RuntimeError(done.stderr[-200:].strip().replace("\n", " | "))
    return json.loads(done.stdout.partition("FOUND")[2])


def row(python: str, made: Pretrained, count: int) -> str:
    """How many tokens are alike, how far log-probabilities are apart until then, and by how much
    our token was ahead of the next one where theirs is another."""
    with tempfile.TemporaryDirectory() as folder:
        path = export_gguf(made, Path(folder) / "tiny.gguf")
        tokens, scored = theirs(python, path, PROMPT, count)
    mine, scores, leads = ours(made, PROMPT, count)
    alike = next((n for n, pair in enumerate(zip(mine, tokens)) if pair[0] != pair[1]), count)
    gaps, left = [0.0], list(scored)
    for token, score in zip(tokens[:alike], scores):
        if left and left[0][0] == token:
            gaps.append(abs(left.pop(0)[1] - score))
    lead = f"{leads[alike]:8.3f}" if alike < count else "       -"
    return f"{alike:5} of {count} {max(gaps):12.4f} {lead}"


def main() -> None:
    """Print the table."""
    python, *asked = sys.argv[1:]
    print("family           architecture     tokens alike   difference     lead")
    for name in asked or [name for name in FAMILIES if FAMILIES[name].to_gguf is not None]:
        try:
            found = row(python, model_of(name), COUNT)
        except Exception as error:  # the table shows what fails
            found = f"{type(error).__name__}: {error}"
        print(f"{name:16} {FAMILIES[name].gguf_architectures[0]:16} {found}", flush=True)


if __name__ == "__main__":
    main()
