"""Every family against transformers itself: stored outputs recomputed, directories exchanged
in both directions, gradients."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.models.family_cases import ours
from tests.oracle import families

from ziggurat.data import HuggingFaceTokenizer
from ziggurat.formats import SafetensorsDirectory
from ziggurat.models.conversion.weight_names import export_weights
from ziggurat.models.loading import pretrained

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

every_case = pytest.mark.parametrize("case", families.CASES)
WIDE = (
    "llama/gqa-2",
    "llama/tied",
    "llama/many-switches",
    "llama/rope-yarn-mscale",
    "llama/mistral",
    "llama/smollm2-like",
    "qwen/qwen3-window-yarn",
    "gemma/gemma2",
    "gemma/gemma3-linear-of-global",
    "gpt2/plain",
)


def torch_logits(model, tokens) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(tokens)).long()).logits.numpy()


def our_logits(model, params, tokens) -> np.ndarray:
    return np.asarray(jax.jit(model.logits)(params, jnp.asarray(tokens)))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> HuggingFaceTokenizer:
    import tokenizers

    letters = {f"t{index}": index for index in range(families.VOCABULARY)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(letters, unk_token="t0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    directory = tmp_path_factory.mktemp("tokenizer")
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "t1", "eos_token": "t2", "unk_token": "t0"})
    )
    return HuggingFaceTokenizer.load(directory)


@pytest.mark.parametrize("case", families.CASES + families.ENCODER_CASES)
def test_stored_outputs_are_what_transformers_computes(case):
    families.compare(case, families.recompute(case), families.load(case))


@pytest.mark.parametrize("case", WIDE)
@pytest.mark.parametrize("length", [1, 5, 40])
def test_wide_table_of_lengths_and_rows(case, length):
    tokens = np.random.default_rng(length).integers(0, families.VOCABULARY, (3, length))
    expected = torch_logits(families.torch_model(case), tokens)
    found = our_logits(ours(case).model, ours(case).params, tokens)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@every_case
def test_what_transformers_saves_loads_here(case, tmp_path, tokenizer):
    families.torch_model(case).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    loaded = pretrained.load(tmp_path)
    assert loaded.model.config == ours(case).config
    jax.tree.map(np.testing.assert_array_equal, loaded.params, ours(case).params)


@every_case
def test_what_we_export_loads_in_transformers(case, tmp_path, tokenizer):
    a = ours(case)
    mine = pretrained.Pretrained(a.model, a.params, tokenizer, case, "test")
    pretrained.export_hf(mine, tmp_path / "out", max_shard_bytes=50_000)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 1
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values()), report
    tokens = families.tokens(case)
    expected = torch_logits(families.torch_model(case), tokens)  # on this CPU: no stored ones
    np.testing.assert_allclose(torch_logits(model, tokens), expected, atol=1e-5, rtol=0)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)
    assert pretrained.load(tmp_path / "out").model.config.decoder() == a.config.decoder()


def test_sharded_directory_of_transformers(tmp_path, tokenizer):
    case = "llama/llama-3.2-like"
    families.torch_model(case).save_pretrained(tmp_path, max_shard_size="200KB")
    tokenizer.save(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert len(SafetensorsDirectory(tmp_path)) == len(families.load(case).shapes)
    loaded = pretrained.load(tmp_path)
    found = our_logits(loaded.model, loaded.params, families.tokens(case))
    np.testing.assert_allclose(found, families.load(case).logits, atol=1e-4, rtol=0)


def test_bfloat16_directory_of_transformers(tmp_path, tokenizer):
    """Weights rounded to bfloat16 by transformers are read as exactly those numbers."""
    model = families.torch_model("llama/tied").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = pretrained.load(tmp_path)
    table = model.get_input_embeddings().weight.detach().float().numpy()
    np.testing.assert_array_equal(loaded.params["embedding"]["table"], table)


def torch_gradients(model, directory) -> dict[str, np.ndarray]:
    """By the names that files have: written as if they were the weights, since transformers keeps
    experts fused. Buffers have none."""
    from safetensors.numpy import load_file

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
        for buffer in model.buffers():
            buffer.zero_()
    model.save_pretrained(directory)
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize(
    "case",
    [
        "llama/many-switches",
        "llama/mistral",
        "llama/gqa-3",
        "qwen/qwen3",
        "gemma/gemma2",
        "gemma/gemma3-linear-of-global",
        "gpt2/scaled-by-layer",
        "mixtral/many-switches",
        "deepseek/yarn",
        "gpt_oss/gate-clamped",
        "cohere/cohere-head-norm",
        "falcon/newer",
        "granite/many-switches",
        "nemotron/biases",
        "olmo/olmo3-yarn-of-global",
        "stablelm/head-norm",
        "mamba2/biases-limits",
    ],
)
def test_gradients_equal_torch(case, tmp_path):
    a, model, tokens = ours(case), families.torch_model(case), families.tokens(case)
    model.get_input_embeddings().padding_idx = None  # torch keeps padding's row out of training
    labels = torch.from_numpy(tokens).long()
    logits = model(labels).logits[:, :-1].reshape(-1, families.VOCABULARY)
    torch.nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1)).backward()
    expected = torch_gradients(model, tmp_path)

    def loss(params):
        logp = jax.nn.log_softmax(a.model.logits(params, jnp.asarray(tokens))[:, :-1])
        return -jnp.take_along_axis(logp, jnp.asarray(tokens)[:, 1:, None], axis=-1).mean()

    gradients = jax.jit(jax.grad(loss))(a.params)
    found = dict(
        export_weights(a.family.hf_names(a.config), gradients, layers=a.model.decoder.n_layers)
    )
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(
            gradient, expected[name], atol=1e-4 * scale + 1e-7, rtol=0, err_msg=name
        )
