"""Every decoder family and weight format on a mesh of two devices: the tokens of one device."""

import jax
import numpy as np
import pytest
from tests.models.family_cases import ours
from tests.oracle import families

from ziggurat import mesh
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.models.quantized import formats_of, quantized, summed_axes
from ziggurat.quantize import NAMED
from ziggurat.quantize.weights import quantize
from ziggurat.serve.llm.engine import Engine, EngineConfig
from ziggurat.serve.llm.sampling import SamplingParams

TENSOR = mesh.build(mesh.MeshConfig(tensor=2), jax.devices()[:2])
DECODERS = [case for case in families.CASES if case not in families.ENCODER_CASES]
CASES = {case.partition("/")[0]: case for case in reversed(DECODERS)}
"""The first case of each family."""


def greedy(model, params, tokenizer, where):
    longest = min(64, model.config.max_sequence_length)
    settings = EngineConfig(max_sequence_length=longest, max_prefill_chunk=16, max_running=2)
    size = 20 if longest >= 40 else 5
    prompt = np.random.default_rng(0).integers(0, model.decoder.vocab_size, size).tolist()
    asked = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    with Engine(model, params, tokenizer, settings, mesh=where) as engine:
        return [event.token for event in engine.generate(prompt, asked)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_family_gives_the_same_tokens(case, tokenizer):
    made = ours(case)
    alone = greedy(made.model, made.params, tokenizer, None)
    assert len(alone) == 8
    assert greedy(made.model, made.params, tokenizer, TENSOR) == alone


@pytest.mark.parametrize("recipe", NAMED)
def test_a_weight_format_gives_the_same_tokens(recipe, tokenizer):
    sizes = {"d_model": 64, "d_ff": 128, "n_layers": 2, "n_heads": 4, "init_std": 0.3}
    model = LanguageModel.build(LlamaConfig(vocab_size=258, max_sequence_length=64, **sizes))
    params = model.init(jax.random.key(0))
    small = quantize(params, NAMED[recipe], summed_axes(model)).params
    alone = greedy(model, small, tokenizer, None)
    assert greedy(model, small, tokenizer, TENSOR) == alone
    told = quantized(model, formats_of(small))  # as a checkpoint of quantised weights is loaded
    assert greedy(told, small, tokenizer, TENSOR) == alone
