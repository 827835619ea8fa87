"""Low-rank adapters: joined with their base as PEFT does, merged, read and written."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from tests.oracle import peft_lora as oracle

from ziggurat.checkpoint import Checkpoints
from ziggurat.core.errors import CheckpointError, ConfigError, ModelError
from ziggurat.core.pytrees import map_named, named_leaves
from ziggurat.data.tokenizers import byte_level
from ziggurat.formats import SafetensorsDirectory, write_sharded
from ziggurat.kernels.grouped_matmul import grouped_matmul
from ziggurat.kernels.linear import (
    LoraWeight,
    QuantizedWeight,
    WeightFormat,
    is_weight_node,
    project,
)
from ziggurat.models import LanguageModel, LlamaConfig, adapters
from ziggurat.models.loading import peft, pretrained, step_files
from ziggurat.models.quantized import formats_of, quantized, summed_axes

TINY = LlamaConfig(vocab_size=288, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64)


@pytest.fixture(scope="module")
def stored():
    return oracle.load()


@pytest.fixture(scope="module")
def base(stored, tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    byte_level().save(directory)
    one = stored["attention"]
    (directory / "config.json").write_text(json.dumps(one.base))
    write_sharded(directory, one.base_tensors().items())
    return directory


def write(directory, stored, base, **changes):
    directory.mkdir()
    values = stored.config | {"base_model_name_or_path": str(base)} | changes
    (directory / "adapter_config.json").write_text(json.dumps(values))
    write_sharded(directory, stored.tensors().items(), stem="adapter_model")
    return directory


def logits(model, params):
    return np.asarray(jax.jit(model.logits)(params, jnp.asarray(oracle.tokens())))


@pytest.mark.parametrize("case", oracle.CASES)
def test_logits_are_pefts_and_the_adapters_go_back(case, stored, base, tmp_path):
    """1e-5 of logits of order one: the same float32 sums in another order."""
    directory = write(tmp_path / "given", stored[case], base)
    plain = pretrained.load(base)
    lora, arrays = peft.read_peft(directory, plain.model)
    joined = adapters.attached(plain.params, arrays, lora.scale)
    assert any(
        isinstance(leaf, LoraWeight) for leaf in jax.tree.leaves(joined, is_leaf=is_weight_node)
    )
    scale = np.abs(stored[case].logits).max()
    np.testing.assert_allclose(logits(plain.model, joined), stored[case].logits, atol=1e-5 * scale)
    loaded = pretrained.load(directory)
    np.testing.assert_allclose(
        logits(loaded.model, loaded.params), stored[case].logits, atol=1e-5 * scale
    )
    peft.write_peft(tmp_path / "back", lora, arrays, plain.model, "base")
    files = SafetensorsDirectory(tmp_path / "back", "adapter_model")
    for name, tensor in stored[case].tensors().items():
        np.testing.assert_array_equal(files.read(name), tensor)
    values = json.loads((tmp_path / "back/adapter_config.json").read_text())
    for key in ("r", "lora_alpha", "use_rslora", "bias", "peft_type", "task_type"):
        assert values[key] == stored[case].config[key], key


def test_what_peft_has_more_is_refused(stored, base, tmp_path):
    model = pretrained.load(base).model
    for number, (changes, found) in enumerate(
        (
            ({"use_dora": True}, "use_dora: found True; expected False"),
            ({"modules_to_save": ["lm_head"]}, "modules_to_save: found"),
            ({"bias": "all"}, "bias: found all"),
            ({"peft_type": "IA3"}, "peft_type: found IA3"),
        )
    ):
        directory = write(tmp_path / f"{number}", stored["attention"], base, **changes)
        with pytest.raises(ModelError, match=found):
            peft.read_peft(directory, model)
    other = LanguageModel.build(TINY)
    directory = write(tmp_path / "other", stored["attention"], "nowhere")
    with pytest.raises(CheckpointError, match=r"layers.2.*belongs to no kernel of the model"):
        peft.read_peft(directory, other)
    with pytest.raises(ModelError, match="base_model_name_or_path: found 'nowhere'"):
        pretrained.load(directory)


def drawn(model, lora, seed=0):
    """Adapters of which both halves say something."""
    shapes, _ = adapters.adapter_shapes(model, lora)
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        tree, [0.3 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves)]
    )


def test_products_in_parts_are_products_with_the_sum():
    """Of a kernel, and of the experts' kernels, which are added up first."""
    keys = jax.random.split(jax.random.key(0), 4)
    base, a, b, x = (
        jax.random.normal(key, shape)
        for key, shape in zip(keys, ((3, 8, 6), (3, 8, 2), (3, 2, 6), (5, 8)))
    )
    weight, sizes = LoraWeight(base, a, b, 0.5), jnp.array([2, 0, 3])
    np.testing.assert_allclose(weight.merged(), base + 0.5 * (a @ b), rtol=1e-6)
    np.testing.assert_allclose(project(x, weight[1]), x @ weight.merged()[1], atol=1e-5)
    expected = jnp.concatenate([x[:2] @ weight.merged()[0], x[2:] @ weight.merged()[2]])
    np.testing.assert_allclose(grouped_matmul(x, weight, sizes), expected, atol=1e-5)


def test_fresh_adapters_change_nothing():
    model = LanguageModel.build(TINY)
    lora = adapters.Lora(rank=2)
    fresh = adapters.initial_adapters(model, lora, jax.random.key(1))
    shapes, axes = adapters.adapter_shapes(model, lora)
    assert jax.tree.structure(fresh) == jax.tree.structure(shapes)
    assert (
        named_leaves(axes, is_leaf=lambda n: isinstance(n, tuple)).keys()
        == named_leaves(shapes).keys()
    )
    for name, leaf in named_leaves(fresh).items():
        assert leaf.any() == name.endswith(".a"), name
        assert np.abs(leaf).max() <= leaf.shape[-2] ** -0.5


@pytest.mark.slow
def test_a_quantised_base_is_joined_and_gives_gradients():
    """QLoRA: the base stays int8; merged, it is floats where it was adapted."""
    model = LanguageModel.build(TINY)
    params = model.init(jax.random.key(0))
    lora = adapters.Lora(rank=2, targets="blocks/mlp/.*")
    names = [n for n, axis in summed_axes(model).items() if axis == -2 and "mlp" in n]
    formats = dict.fromkeys(names, WeightFormat("int8"))
    small = quantized(model, formats)

    def shrink(name, leaf):
        if name not in formats:
            return leaf
        array = qwix.quantize(leaf, "int8", channelwise_axes=(0, 2))
        return QuantizedWeight.of(array, formats[name], -2)

    params = map_named(shrink, params)
    arrays = drawn(small, lora)
    joined = adapters.attached(params, arrays, lora.scale)
    rebuilt, whole = adapters.merge_into(small, params, arrays, lora)
    assert len(formats_of(joined)) == 3
    assert not formats_of(whole)
    assert jax.tree.structure(rebuilt.abstract) == jax.tree.structure(model.abstract)

    tokens = jnp.asarray(oracle.tokens())

    def loss(arrays):
        found = small.logits(adapters.attached(params, arrays, lora.scale), tokens)
        return jax.nn.log_softmax(found)[..., 0].sum()

    gradients = jax.jit(jax.grad(loss))(arrays)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))


def test_targets_that_match_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"adapter.targets.*matches no kernel"):
        adapters.adapted_names(adapters.Lora(targets="q_proj"), LanguageModel.build(TINY))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("case", oracle.CASES)
def test_stored_adapters_are_pefts(case, stored, base, tmp_path):
    oracle.compare(case, oracle.recompute(case), stored[case])
    directory = write(tmp_path / "given", stored[case], base)
    model = pretrained.load(base).model
    peft.write_peft(tmp_path / "back", *peft.read_peft(directory, model), model, str(base))
    found = oracle.logits_of(tmp_path / "back")
    np.testing.assert_allclose(found, stored[case].logits, atol=1e-5 * np.abs(found).max())


def test_a_step_of_adapters_is_read_merged_while_its_base_is_there(base, tmp_path):
    """Also after base and step have moved together; another base in its place is refused."""
    whole = pretrained.load(base)
    here = tmp_path / "runs"
    pretrained.save(whole, here / "base")
    lora = adapters.Lora(rank=2, targets=".*/query")
    arrays = drawn(whole.model, lora)
    place = here / "base/step_00000000"
    record = adapters.AdapterRecord(lora, place, adapters.fingerprint(place))
    step = here / "tuned/checkpoints/step_00000003"
    files = step_files.files_of(whole.model.config, whole.tokenizer)
    files |= {adapters.ADAPTER_FILE: record.text(step).encode()}
    with Checkpoints(step.parent) as checkpoints:
        checkpoints.save(3, {"params": arrays}, {}, files)
    joined = adapters.attached(whole.params, arrays, lora.scale)
    expected = named_leaves(adapters.merged(joined))
    for moved in (False, True):
        loaded = pretrained.load((here.rename(tmp_path / "moved") if moved else here) / "tuned")
        assert loaded.name == "tuned"
        for name, leaf in named_leaves(loaded.params).items():
            np.testing.assert_array_equal(leaf, expected[name])
    (tmp_path / "moved/base/step_00000000/manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="another model than the adapters were trained on"):
        pretrained.load(tmp_path / "moved/tuned")
