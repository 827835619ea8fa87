"""GPTQ on the real SmolLM2-135M against rounding to nearest."""

import sysconfig
from pathlib import Path

import pytest
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

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        oracle.gguf_file() is None, reason=f"package {oracle.PACKAGE}, which holds the weights"
    ),
]


def test_perplexity_rises_at_most_half_as_much_as_by_rounding_to_nearest():
    """The whole model in int4, calibrated on Python's sources, measured on its language reference;
    figures stand in ``docs/how-to/quantize.md``."""
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
    assert 0 < rise["gptq"] <= 0.5 * rise["rtn"], rise
