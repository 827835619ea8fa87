"""How much SmolLM2-135M's perplexity rises in int4, by GPTQ and by rounding to nearest, as JSON.

A program of its own, since tests compile with little effort (:mod:`tests.compilation`), and here
the programs' speed is what takes the time::

    python -m tests.quantize.perplexity_rise
"""

import json
import sysconfig
from pathlib import Path

from tests.oracle import smollm2 as oracle

from ziggurat.models.layer_by_layer import LayerByLayer
from ziggurat.models.loading import pretrained
from ziggurat.models.quantized import summed_axes
from ziggurat.nn.decoder import stack_name
from ziggurat.quantize import NAMED, evaluation
from ziggurat.quantize.calibrated import quantize_calibrated
from ziggurat.quantize.calibration_text import calibration_rows
from ziggurat.quantize.rounding import Calibration, Rounding
from ziggurat.quantize.weights import quantize


def main() -> dict[str, float]:
    """The whole model, calibrated on Python's sources, measured on its language reference."""
    file = oracle.gguf_file()
    assert file is not None
    whole = pretrained.load(file, expand=True)
    model, params = whole.model, whole.params
    size, sources = model.config.vocab_size, str(Path(sysconfig.get_path("stdlib"), "email"))
    asked = Calibration(path=sources, tokens=4096, length=256)
    rows = calibration_rows(asked, whole.tokenizer, size, 8192)
    text = evaluation.windows(evaluation.default_text(), whole.tokenizer, 1024, 512, size)
    axes, recipe = summed_axes(model), NAMED["int4"]
    places = [(stack_name(place.stack), place.index) for place in model.decoder.places]
    layers = LayerByLayer(model, params, rows)
    found = {
        "gptq": quantize_calibrated(params, recipe, axes, Rounding(method="gptq"), layers, places),
        "rtn": quantize(params, recipe, axes),
    }
    rise = {}
    for name, one in found.items():
        measured = evaluation.compare(model.logits, params, one.params, text)
        rise[name] = measured.perplexity_after / measured.perplexity_before - 1
    return rise


if __name__ == "__main__":
    print(json.dumps(main()))
