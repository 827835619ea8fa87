"""The real step compiles for TPU without a TPU, lowers for CUDA, and keeps to its memory."""

import jax
import pytest
from tests.train.runs import run

from ziggurat.core.errors import ConfigError, ShardingError
from ziggurat.core.pytrees import size_bytes
from ziggurat.plan import Topology
from ziggurat.train.ahead_of_time import abstract_step, lower_step

LARGER = ("model.d_model=256", "model.n_heads=4", "model.d_ff=512", "data.sequence_length=256")


def topology(name: str):
    pytest.importorskip("libtpu")
    return Topology.parse(name).devices()


@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("v5e:2x2", ("mesh.fsdp=4",)),
        ("v5e:2x2", ("mesh.fsdp=2", "mesh.tensor=2", "train.remat='full'")),
        ("v5p:2x2x1", ("mesh.fsdp=2", "mesh.context=2", "train.remat='dots'")),
    ],
)
def test_the_step_compiles_for_tpu(name, overrides):
    devices = topology(name)
    compiled = lower_step(run(*LARGER, *overrides), devices).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.argument_size_in_bytes > 0
    text = compiled.as_text()
    assert text is not None
    assert "num_partitions=4" in text
    # bfloat16 products are what "auto" precision means on an accelerator
    assert "bf16[" in text


def test_the_step_lowers_for_cuda():
    from jax import export

    step, arguments, _ = abstract_step(run(*LARGER), jax.devices()[:1])
    exported = export.export(step, platforms=["cuda"])(*arguments)
    assert exported.platforms == ("cuda",)
    assert "stablehlo.dot_general" in exported.mlir_module()


def test_peak_memory_is_bounded():
    """Peak of a step under full remat, against parameters, optimizer, gradients and one layer.

    One layer's activations in float32 for ``n`` tokens, counted from the block's own products: two
    norms and the residual (3 d), query and output (2 d), key and value (2 k c), gate, up and their
    product (3 f), the scores and weights (2 h t), all twice for their gradients; and the residual
    stream that full remat keeps per layer (l d).
    """
    n_layers, d, f, heads, kv, t, b = 8, 512, 1408, 8, 4, 256, 4
    config = run(
        f"model.n_layers={n_layers}",
        f"model.d_model={d}",
        f"model.d_ff={f}",
        f"model.n_heads={heads}",
        f"model.n_kv_heads={kv}",
        f"data.sequence_length={t}",
        f"data.batch_size={b}",
        "train.remat='full'",
        "mesh.fsdp=1",
    )
    step, arguments, _ = abstract_step(config, jax.devices()[:1])
    state = arguments[0]
    memory = step.lower(*arguments).compile().memory_analysis()
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    tokens = b * t
    layer = 4 * tokens * 2 * (3 * d + 2 * d + 2 * kv * d // heads + 3 * f + 2 * heads * t)
    layer += 4 * tokens * n_layers * d
    gradients = size_bytes(state.params)
    bound = size_bytes(state.params) + size_bytes(state.optimizer) + gradients + layer
    assert peak <= 1.3 * bound, f"peak {peak / 1e6:.0f} MB, allowed 1.3 x {bound / 1e6:.0f} MB"


def test_the_state_is_donated():
    step, arguments, _ = abstract_step(run(), jax.devices()[:1])
    state = arguments[0]
    memory = step.lower(*arguments).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= size_bytes(state.params) + size_bytes(state.optimizer)


def test_what_cannot_be_placed_is_refused():
    with pytest.raises(ShardingError, match=r"micro-batch"):
        lower_step(run("data.batch_size=6"), jax.devices())
    with pytest.raises(ShardingError, match=r"mesh\.pipeline"):
        lower_step(run("mesh.pipeline=2"), jax.devices())
    with pytest.raises(ShardingError, match="kv_heads = 2; expected a multiple of 4"):
        lower_step(run("mesh.tensor=4"), jax.devices())
    with pytest.raises(ConfigError, match=r"train\.accumulate: found 3"):
        lower_step(run("train.accumulate=3"), jax.devices()[:1])
