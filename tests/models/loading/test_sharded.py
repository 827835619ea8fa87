"""Sharded over eight virtual devices, a model computes what it computes on one.

Tolerance 2e-5 relative to the largest logit (they are of order one), 1e-4 relative to a gradient's
largest entry: shards are summed in another order, and gates and routers amplify that.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.models.family_cases import ours

from ziggurat.core.pytrees import named_leaves
from ziggurat.mesh import DcnConfig, MeshConfig, build
from ziggurat.models import LanguageModel, LlamaConfig
from ziggurat.nn import Packed

CASE = "llama/smollm2-like"  # 9 query heads, 3 key/value heads, tied; d 72, f 192, v 96
EVEN = "llama/llama-3.2-like"  # 8 query heads, 2 key/value heads; d 64, f 256
KINDS = "gemma/gemma3-linear-of-global"  # local and global layers in turn; d 48, f 80
EXPERTS = "gpt_oss/plain"  # 4 query heads, 2 key/value heads, 4 experts with biases; d 32, f 48
LATENT = "deepseek/plain"  # 4 heads, 8 experts and a shared one; d 32, f 16 and 48
MESHES = {
    "fsdp 8": (CASE, MeshConfig(fsdp=8)),
    "data 8": (CASE, MeshConfig(fsdp=1, data=8)),
    "data 2, fsdp 2, tensor 2": (EVEN, MeshConfig(data=2, fsdp=2, tensor=2)),
    "fsdp 4, context 2": (CASE, MeshConfig(fsdp=4, context=2)),
    "fsdp 2, context 2, tensor 2": (EVEN, MeshConfig(context=2, tensor=2)),
    "context 8": (EVEN, MeshConfig(fsdp=1, context=8)),
    "tensor 8, whole key heads": (EVEN, MeshConfig(fsdp=1, tensor=8, rules={"kv_heads": ()})),
    "layers of two kinds": (KINDS, MeshConfig(data=2, fsdp=2, tensor=2)),
    "slices 2, fsdp 4": (CASE, MeshConfig(fsdp=4, dcn=DcnConfig(data=2))),
    "fsdp 2, tensor 2, expert 2": (EXPERTS, MeshConfig(fsdp=2, tensor=2, expert=2)),
    "context 2, tensor 2, expert 2": (
        LATENT,
        MeshConfig(fsdp=1, context=2, tensor=2, expert=2),
    ),
}


def batch() -> dict[str, jax.Array]:
    """Eight rows of 16 tokens, each with two documents of unlike length."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 96, (8, 17))
    cut = rng.integers(3, 13, (8, 1))
    at = np.arange(16)[None]
    return {
        "tokens": jnp.asarray(tokens[:, :-1]),
        "targets": jnp.asarray(tokens[:, 1:]),
        "segment_ids": jnp.asarray(1 + (at >= cut), jnp.int32),
        "positions": jnp.asarray(np.where(at >= cut, at - cut, at), jnp.int32),
    }


def loss(model: LanguageModel, params, batch):
    context = Packed(batch["segment_ids"])
    logits = model.logits(params, batch["tokens"], batch["positions"], context)
    log_probs = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(log_probs, batch["targets"][..., None], axis=-1)
    return -chosen.mean(), logits


@pytest.fixture(scope="module")
def unsharded():
    results = {}

    def result(case):
        if case not in results:
            step = jax.value_and_grad(lambda p, b: loss(ours(case).model, p, b), has_aux=True)
            results[case] = jax.jit(step)(ours(case).params, batch())
        return results[case]

    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_logits_and_gradients_equal_the_unsharded_ones(name, unsharded):
    case, mesh = MESHES[name]
    model, layout = ours(case).model, build(mesh)
    params = jax.device_put(ours(case).params, model.shardings(layout))
    rows = jax.device_put(batch(), layout.sharding(("batch", "sequence"), (8, 16)))
    with layout.active():
        step = jax.value_and_grad(lambda p, b: loss(model, p, b), has_aux=True)
        (value, logits), gradients = jax.jit(step)(params, rows)
    (expected, expected_logits), expected_gradients = unsharded(case)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    largest = np.abs(expected_logits).max()
    np.testing.assert_allclose(logits, expected_logits, atol=2e-5 * largest, rtol=0)
    wanted = named_leaves(expected_gradients)
    for leaf, gradient in named_leaves(gradients).items():
        scale = np.abs(wanted[leaf]).max()
        np.testing.assert_allclose(gradient, wanted[leaf], atol=1e-4 * scale, rtol=0, err_msg=leaf)


def test_parameters_are_divided_as_the_axes_say():
    layout = build(MeshConfig(fsdp=2, tensor=2, data=2))
    model = ours(EVEN).model
    params = jax.device_put(ours(EVEN).params, model.shardings(layout))
    kernel = params["blocks"]["mlp"]["up"]["kernel"]
    assert {s.data.shape for s in kernel.addressable_shards} == {(3, 64 // 2, 256 // 2)}
    table = params["embedding"]["table"]
    assert {s.data.shape for s in table.addressable_shards} == {(96 // 2, 64 // 2)}
    one_device = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(params))
    assert one_device < 0.26 * model.parameter_count


def test_every_parameter_names_every_dimension():
    model = ours("llama/many-switches").model
    is_axes = lambda x: isinstance(x, tuple)  # noqa: E731
    axes = {
        jax.tree_util.keystr(path): names
        for path, names in jax.tree_util.tree_leaves_with_path(model.axes, is_leaf=is_axes)
    }
    shapes = {
        jax.tree_util.keystr(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.abstract)
    }
    assert axes.keys() == shapes.keys()
    sizes = {"layers": 3, "embed": 48, "mlp": 80, "vocab": 96, "heads": 60, "kv_heads": 20}
    for name, shape in shapes.items():
        assert shape == tuple(sizes[axis] for axis in axes[name]), name


@pytest.mark.slow
def test_fresh_parameters_do_not_depend_on_the_mesh():
    model = LanguageModel.build(
        LlamaConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=2, d_ff=32, attention_bias=True)
    )
    layout = build(MeshConfig(fsdp=4, tensor=2))
    key = jax.random.key(3)
    whole, divided = model.init(key), model.init(key, layout)
    jax.tree.map(np.testing.assert_array_equal, whole, divided)
    kernel = divided["blocks"]["mlp"]["up"]["kernel"]
    assert {s.data.shape for s in kernel.addressable_shards} == {(2, 4, 16)}
    attention = whole["blocks"]["attention"]
    assert (attention["query"]["kernel"] != attention["out"]["kernel"]).all()
    for name, leaf in named_leaves(whole).items():
        if name.endswith(("kernel", "table")):
            assert np.std(leaf) == pytest.approx(0.02, rel=0.15), name
            assert len(np.unique(leaf)) > 0.99 * leaf.size, f"{name}: layers drawn alike"
        else:
            assert (leaf == (1.0 if name.endswith("scale") else 0.0)).all(), name
