"""Adapters of every family in PEFT's files: their products are ours, and PEFT's model agrees.

The files are judged without PEFT by multiplying their matrices out and reading the products as
weights of the family, through the names that published weights are read by.
"""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.models.family_cases import ours
from tests.oracle import families

from ziggurat.core.errors import ModelError
from ziggurat.core.pytrees import map_named, named_leaves
from ziggurat.formats import SafetensorsDirectory
from ziggurat.models import LanguageModel, adapters
from ziggurat.models.conversion.weight_names import StoredWeight
from ziggurat.models.loading import peft
from ziggurat.models.loading.peft_modules import without_module

CASES = [
    "gemma/gemma3",
    "gpt2/plain",
    "gpt_neox/plain",
    "llama/gqa-2",
    "mixtral/plain",
    "phi3/plain",
    "qwen/qwen3",
    "qwen_moe/plain",
]
"""One of each structure of weights; those with kernels that PEFT cannot adapt stand below."""
MIXED = (
    "deepseek/plain",
    "deepseek/no-query-latent",
    "gpt_oss/plain",
    "qwen_moe/every-second-layer",
)


def drawn(model, lora):
    shapes, _ = adapters.adapter_shapes(model, lora)
    return map_named(lambda n, s: jnp.asarray(families.drawn("x", n, s.shape, 0.1)), shapes)


class Products:
    """The product of each module of a directory, by the name of the module's weight."""

    def __init__(self, directory):
        self._files = SafetensorsDirectory(directory, "adapter_model")
        self._values = json.loads((directory / "adapter_config.json").read_text())
        start = len("base_model.model.")
        ends = [name[start:] for name in self._files]
        self.names = {end.removesuffix(".lora_A.weight") for end in ends if ".lora_A." in end}

    def __iter__(self):
        return iter(sorted(self.names))

    def dtype_of(self, name: str) -> np.dtype:
        return np.dtype(np.float32)

    def read(self, name: str) -> np.ndarray:
        module = name.removesuffix(".weight")
        a, b = (self._files.read(f"base_model.model.{module}.lora_{part}.weight") for part in "AB")
        alpha, rank = (self._setting(key, module) for key in ("lora_alpha", "r"))
        assert len(a) == rank
        scale = alpha / (math.sqrt(rank) if self._values["use_rslora"] else rank)
        product = scale * b @ a
        return product.T if self._values["fan_in_fan_out"] else product

    def _setting(self, key, module):
        patterns = self._values.get({"r": "rank_pattern", "lora_alpha": "alpha_pattern"}[key], {})
        matching = [value for name, value in patterns.items() if re.search(rf"\b{name}$", module)]
        return matching[0] if matching else self._values[key]


EVERY, ATTENTION = r"blocks(_\d+)?/.*", r"blocks(_\d+)?/attention/(query|out)"


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    ("case", "targets"),
    [(case, EVERY) for case in CASES] + [(case, ATTENTION) for case in (*CASES, *MIXED)],
)
def test_products_in_the_files_are_ours(case, targets, rslora, tmp_path):
    """1e-6 of deltas of order 0.1: float32 products in another order."""
    model, family, config = ours(case).model, ours(case).family, ours(case).config
    lora = adapters.Lora(rank=3, alpha=6.0, rslora=rslora, targets=targets)
    arrays = drawn(model, lora)
    peft.write_peft(tmp_path / "out", lora, arrays, model, "base")
    products, leaves = Products(tmp_path / "out"), named_leaves(arrays)
    names = {name.ours: name for name in family.hf_names(config)}
    layers, seen = model.decoder.n_layers, set()
    for kernel in adapters.adapted_names(lora, model):
        name, expected = names[kernel], leaves[f"{kernel}.a"] @ leaves[f"{kernel}.b"] * lora.scale
        stored = StoredWeight(name, products, expected.shape, np.float32, layers)
        np.testing.assert_allclose(stored.read(), expected, atol=1e-6, err_msg=kernel)
        seen |= {theirs.removesuffix(".weight") for theirs in name.all_theirs(layers)}
    assert products.names == seen
    read, back = peft.read_peft(tmp_path / "out", model)
    for kernel in adapters.adapted_names(lora, model):
        a, b = (named_leaves(back)[f"{kernel}.{part}"] for part in "ab")
        expected = leaves[f"{kernel}.a"] @ leaves[f"{kernel}.b"] * lora.scale
        np.testing.assert_allclose(a @ b * read.scale, expected, atol=1e-6, err_msg=kernel)


@pytest.mark.parametrize("case", MIXED)
def test_what_peft_cannot_adapt_is_refused(case, tmp_path):
    """Experts in one tensor; dense layers that it would take for experts."""
    model = ours(case).model
    lora = adapters.Lora(rank=2)
    assert without_module(lora, model)
    with pytest.raises(ModelError, match=r"PEFT has no module.*ziggurat export hf"):
        peft.write_peft(tmp_path / "out", lora, drawn(model, lora), model, "base")
    assert not (tmp_path / "out").exists()


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.parametrize(
    ("case", "rslora", "targets"),
    [("gpt2/plain", False, EVERY), ("gpt2/plain", True, ATTENTION), ("qwen_moe/plain", True, EVERY),
     ("mixtral/plain", True, EVERY), ("deepseek/plain", False, ATTENTION)],
)  # fmt: skip
def test_logits_are_pefts(case, rslora, targets, tmp_path):
    """1e-5 of logits of order one: the same float32 sums in another order."""
    import peft as theirs
    import torch

    one = ours(case)
    assert isinstance(one.model, LanguageModel)
    lora = adapters.Lora(rank=3, alpha=6.0, rslora=rslora, targets=targets)
    arrays = drawn(one.model, lora)
    peft.write_peft(tmp_path / "out", lora, arrays, one.model, "base")
    base = families.torch_model(case, tmp_path / "base")
    adapted = theirs.PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    tokens = families.tokens(case)
    with torch.no_grad():
        expected = adapted(torch.from_numpy(tokens).long()).logits.numpy()
    params = adapters.attached(one.params, arrays, lora.scale)
    found = np.asarray(jax.jit(one.model.logits)(params, jnp.asarray(tokens)))
    plain = np.asarray(jax.jit(one.model.logits)(one.params, jnp.asarray(tokens)))
    scale = np.abs(expected).max()
    assert np.abs(plain - expected).max() > 1e-3 * scale, "the adapters change something"
    np.testing.assert_allclose(found, expected, atol=2e-5 * scale)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
def test_ranks_and_scales_by_module_are_read(tmp_path):
    """PEFT's own rank_pattern and alpha_pattern, one of them for a single layer."""
    import peft as theirs
    import torch

    case = "llama/gqa-2"
    settings = theirs.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj"],
        rank_pattern={"v_proj": 2, "layers.1.self_attn.q_proj": 6}, alpha_pattern={"up_proj": 32},
    )  # fmt: skip
    adapted = theirs.get_peft_model(families.torch_model(case, tmp_path / "base"), settings).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            values = families.drawn("x", name, tuple(parameter.shape), 0.2)
            parameter.data.copy_(torch.from_numpy(values))
    adapted.save_pretrained(tmp_path / "out")
    tokens = families.tokens(case)
    with torch.no_grad():
        expected = adapted(torch.from_numpy(tokens).long()).logits.numpy()
    one = ours(case)
    lora, arrays = peft.read_peft(tmp_path / "out", one.model)
    params = adapters.attached(one.params, jax.tree.map(jnp.asarray, arrays), lora.scale)
    found = np.asarray(jax.jit(one.model.logits)(params, jnp.asarray(tokens)))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
