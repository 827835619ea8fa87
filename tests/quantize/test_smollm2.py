"""GPTQ on the real SmolLM2-135M against rounding to nearest."""

import json
import os
import subprocess
import sys

import pytest
from tests.oracle import smollm2 as oracle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        oracle.gguf_file() is None, reason=f"package {oracle.PACKAGE}, which holds the weights"
    ),
]


def test_perplexity_rises_at_most_half_as_much_as_by_rounding_to_nearest():
    """The whole model in int4; figures stand in ``docs/how-to/quantize.md``."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.quantize.perplexity_rise"],
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rise = json.loads(done.stdout.splitlines()[-1])
    assert 0 < rise["gptq"] <= 0.5 * rise["rtn"], rise
