"""One model of each kind of mixer over eight devices: outputs and gradients of one device.

Outputs within 2e-5 of the largest and gradients within 1e-4 of the largest entry: shards are summed
in another order in float32, and gates and routers amplify that. The delta net's gradients get 2e-3:
it scales vectors to length one, which magnifies rounding where they are short.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from tests.models.families.test_qwen_vl import loaded, prompt_of
from tests.train.tiny_families import families

from ziggurat.core.pytrees import named_leaves
from ziggurat.mesh import MeshConfig, build
from ziggurat.models import LanguageModel

DENSE = MeshConfig(data=2, fsdp=2, tensor=2)
SPARSE = MeshConfig(fsdp=2, tensor=2, expert=2)
WIDER = {"n_heads": 4, "n_kv_heads": 2, "d_model": 32, "d_ff": 64, "n_layers": 2}
OWN = {
    "gemma3": {"window": 8, "pattern": ("local", "global")},
    "qwen3_next": {"pattern": ("linear", "full"), "delta_value_heads": 4},
}
KINDS = {
    "grouped attention": ("llama", DENSE),
    "windowed attention": ("gemma3", DENSE),
    "gated delta net": ("qwen3_next", SPARSE),
    "Mamba-2": ("mamba2", DENSE),
    "short convolution": ("lfm2", DENSE),
    "mixture of experts": ("mixtral", SPARSE),
    "images and text": ("qwen3_vl", DENSE),
}


def config_of(family: str) -> Any:
    config = families()[family]
    names = {field.name for field in dataclasses.fields(config)}
    wider = {name: size for name, size in WIDER.items() if name in names}
    return dataclasses.replace(config, **wider | OWN.get(family, {}))


def moved(params: Any) -> Any:
    """Fresh parameters with every entry off its first value, as of zeros in biases."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.05 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys)]
    return jax.tree.unflatten(structure, noisy)


def case(kind: str) -> tuple[Any, Any, Callable[[Any], jax.Array]]:
    """A model, its parameters, and its outputs from them."""
    family, _ = KINDS[kind]
    rows = jax.random.randint(jax.random.key(2), (8, 24), 0, 48)
    if family == "qwen3_vl":
        whole, (_, tokens, images) = loaded(family), prompt_of(family)
        model, rows = whole.vision, np.array([tokens] * 4)
        params = {"language": whole.params, "tower": whole.tower}
        return (
            model,
            params,
            lambda p: model.logits(p["language"], model.prompt(p["tower"], rows, [images] * 4)),
        )
    language = LanguageModel.build(config_of(family))
    return language, moved(language.init(jax.random.key(0))), lambda p: language.logits(p, rows)


def outputs_and_gradients(outputs: Callable[[Any], jax.Array], params: Any) -> Any:
    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        found = outputs(params)
        return jax.nn.log_softmax(found)[..., 0].mean(), found

    (_, found), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return np.asarray(found), named_leaves(gradients)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_one_device(kind):
    model, params, outputs = case(kind)
    expected, wanted = outputs_and_gradients(outputs, params)
    layout = build(KINDS[kind][1])
    placed = jax.device_put(params, model.shardings(layout))
    with layout.active():
        found, gradients = outputs_and_gradients(outputs, placed)
    largest = np.abs(expected).max()
    assert largest > 0.05
    np.testing.assert_allclose(found, expected, atol=2e-5 * largest, rtol=0)
    close = 2e-3 if kind == "gated delta net" else 1e-4
    still = {name for name, gradient in wanted.items() if not np.any(gradient)}
    assert all("router" in name for name in still), still  # biases that only choose experts
    for name, gradient in gradients.items():
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(gradient, wanted[name], atol=close * scale, rtol=0, err_msg=name)
