"""Every decoder family and weight format on a mesh of two devices: the tokens of one device."""

import jax
import numpy as np
import pytest
from tests.models import quantised_cases
from tests.models.family_cases import ours
from tests.oracle import families

from ziggurat import mesh
from ziggurat.core.pytrees import map_named
from ziggurat.kernels.linear import WeightFormat
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.models.loading import pretrained
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


@pytest.mark.slow
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


FOREIGN = ("gptq-4bit-ordered", "fp8-blocks", "modelopt-nvfp4", "bitsandbytes-nf4-nested")


@pytest.mark.slow
@pytest.mark.parametrize("name", FOREIGN)
def test_another_programs_checkpoint_gives_the_tokens_of_its_float_twin(name, tokenizer, tmp_path):
    """On one device and on two, which read it shard by shard."""
    files = quantised_cases.write(tmp_path, name)
    plain, loaded = pretrained.load(files.plain), pretrained.load(files.packed)
    expected = greedy(plain.model, plain.params, tokenizer, None)
    assert greedy(loaded.model, loaded.params, tokenizer, None) == expected
    spread = pretrained.load(files.packed, layout=TENSOR)
    assert greedy(spread.model, spread.params, tokenizer, TENSOR) == expected


@pytest.mark.slow
def test_blocks_of_a_gguf_file_give_the_tokens_of_their_floats(tokenizer, tmp_path):
    packed, plain, _ = quantised_cases.write_gguf(tmp_path / "files", mixed_blocks)
    twin, loaded = pretrained.load(plain), pretrained.load(packed)
    expected = greedy(twin.model, twin.params, tokenizer, None)
    assert greedy(loaded.model, loaded.params, tokenizer, None) == expected
    assert greedy(loaded.model, loaded.params, tokenizer, TENSOR) == expected


def mixed_blocks(name):
    kinds = {"ffn_down": "Q6_K", "ffn_up": "Q3_K", "attn_q": "Q4_1", "attn_k": "IQ4_XS"}
    return next((kind for part, kind in kinds.items() if part in name), "Q5_K")


EXPERTS = {
    "mxfp4": WeightFormat("fp4_e2m1", tile_size=8, scale="e8m0"),
    "tiles that do not divide": WeightFormat("int4", tile_size=16),
    "per channel": WeightFormat("fp8_e4m3"),
}


@pytest.mark.slow
@pytest.mark.parametrize("format", EXPERTS.values(), ids=EXPERTS)
@pytest.mark.parametrize("axes", [{"tensor": 2}, {"expert": 2}], ids=["tensor", "expert"])
def test_quantised_experts_are_the_same_on_two_devices(format, axes):
    made = ours("gpt_oss/plain")  # 4 experts; d 32, f 48
    rng = np.random.default_rng(0)

    def drawn(name, leaf):
        if ".experts." not in name or not name.endswith(".kernel"):
            return leaf
        like = format.abstract(leaf.shape, leaf.dtype, -2)

        def part(like):
            if like.dtype == np.uint8:
                low, high = (122, 126) if like.shape[-2] == like_tiles else (0, 256)
                return rng.integers(low, high, like.shape).astype(np.uint8)
            return rng.uniform(-1, 1, like.shape).astype(like.dtype)

        like_tiles = format.tiles(leaf.shape[-2])
        return jax.tree.map(part, like)

    params = map_named(drawn, made.params)
    model = quantized(made.model, formats_of(params))
    layout = mesh.build(mesh.MeshConfig(fsdp=1, **axes), jax.devices()[:2])
    tokens = np.repeat(families.tokens("gpt_oss/plain"), 2, axis=0)
    alone = np.asarray(jax.jit(model.logits)(params, tokens))
    spread = jax.device_put(params, model.shardings(layout))
    with layout.active():
        found = np.asarray(jax.jit(model.logits)(spread, tokens))
    # the same sums in another order
    np.testing.assert_allclose(found, alone, atol=2e-5 * np.abs(alone).max(), rtol=0)
