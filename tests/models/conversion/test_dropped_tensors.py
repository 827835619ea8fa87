"""Tensors that no parameter is read from are compared with what stands for them, not believed."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from gguf import GGUFWriter

from ziggurat.core.errors import CheckpointError
from ziggurat.data.tokenizers import byte_level
from ziggurat.formats import SafetensorsDirectory, write_sharded
from ziggurat.models import FAMILIES, LanguageModel, LlamaConfig
from ziggurat.models.conversion.dropped_tensors import CHECKS, check_dropped
from ziggurat.models.families.dit import diffusers as dit_files
from ziggurat.models.families.dit.config import DitConfig
from ziggurat.models.families.llama.gguf import gguf_names
from ziggurat.models.loading import foreign_weights, pretrained
from ziggurat.nn.diffusion_transformer import grid_positions
from ziggurat.nn.rope import LinearScaling, RopeConfig, frequencies

CONFIG = LlamaConfig(vocab_size=257, d_model=16, n_layers=2, n_heads=2, max_sequence_length=32)
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
TOKENS = np.array([[5, 9, 200, 0, 17]])


@pytest.fixture(scope="module")
def made():
    """A tied model, and its tensors as Hugging Face has them."""
    model = LanguageModel.build(CONFIG)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), model.abstract
    )
    return pretrained.Pretrained(model, params, byte_level(), "tiny", "drawn")


@pytest.fixture(scope="module")
def exported(made, tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported") / "hf"
    pretrained.export_hf(made, directory)
    return directory


@pytest.fixture(scope="module")
def logits():
    """Logits of a model, compiled once for tied embeddings and once for two matrices."""
    compiled = {}

    def run(loaded):
        key = loaded.model.config
        if key not in compiled:
            compiled[key] = jax.jit(loaded.model.logits)
        return np.asarray(compiled[key](loaded.params, TOKENS))

    return run


def copy(source, target, change):
    """A Hugging Face directory with its tensors changed."""
    target.mkdir()
    files = SafetensorsDirectory(source)
    tensors = {name: np.array(files.read(name)) for name in files}
    change(tensors)
    write_sharded(target, tensors.items())
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    return target


def other_head(table):
    return np.random.default_rng(9).standard_normal(table.shape).astype(np.float32)


def put_copy(tensors, head, table):
    tensors[head] = tensors[table].copy()


def put_other(tensors, head, table):
    tensors[head] = other_head(tensors[table])


def put_alone(tensors, head, table):
    tensors[head] = tensors.pop(table)


STORED = {"as a copy": put_copy, "another": put_other, "alone": put_alone}


def as_hugging_face(exported, tmp_path, change):
    return pretrained.load(
        copy(exported, tmp_path / "hf", lambda tensors: change(tensors, HEAD, TABLE))
    )


def as_gguf(exported, tmp_path, change):
    files = SafetensorsDirectory(exported)
    names = {n.ours: n for n in gguf_names(dataclasses.replace(CONFIG, tie_embeddings=False))}
    theirs = FAMILIES["llama"].hf_names(CONFIG)
    tensors = {}
    for name in theirs:
        for layer in range(CONFIG.n_layers if "{layer}" in name.theirs else 1):
            array = np.array(files.read(name.theirs.format(layer=layer)))
            there = names[name.ours].theirs
            if "attn_q" in there or "attn_k" in there:  # pairs of rows, as llama.cpp rotates them
                halves = array.reshape(2, 2, 4, -1)
                array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
            tensors[there.format(layer=layer)] = array
    change(tensors, "output.weight", "token_embd.weight")
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(16)
    writer.add_block_count(2)
    writer.add_feed_forward_length(tensors["blk.0.ffn_up.weight"].shape[0])
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    vocabulary = json.loads(byte_level().backend.to_str())
    pieces = sorted({**vocabulary["model"]["vocab"]}.items(), key=lambda pair: pair[1])
    texts = [text for text, _ in pieces] + [t["content"] for t in vocabulary["added_tokens"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(dict.fromkeys(texts))[:257])
    writer.add_token_types([1] * 256 + [3])
    writer.add_token_merges([])
    writer.add_eos_token_id(256)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return pretrained.load(path)


def as_other_programs(exported, tmp_path, change):
    files = SafetensorsDirectory(exported)
    tensors = {name: np.array(files.read(name)) for name in files}
    change(tensors, HEAD, TABLE)
    write_sharded(tmp_path, ((f"module.{k}", v) for k, v in tensors.items()), stem="weights")
    source = SafetensorsDirectory(tmp_path, "weights")
    return foreign_weights.load(source, exported, source="weights")[0]


@pytest.mark.parametrize("read", [as_hugging_face, as_gguf, as_other_programs])
@pytest.mark.parametrize("stored", STORED.values(), ids=STORED.keys())
def test_the_output_matrix_is_the_one_that_is_stored(
    read, stored, exported, made, tmp_path, logits, caplog
):
    """Of three places: equal, it is left out; different, the embeddings are untied (transformers
    5.23 does the same); without an embedding, it is both."""
    found = read(exported, tmp_path, stored)
    untied = stored is put_other
    assert found.model.config.tie_embeddings is not untied
    expected = made
    if untied:
        config = dataclasses.replace(CONFIG, tie_embeddings=False)
        head = other_head(made.params["embedding"]["table"])
        params = {**made.params, "unembedding": head}
        expected = dataclasses.replace(made, model=LanguageModel.build(config), params=params)
        assert "read as two matrices" in caplog.text
    np.testing.assert_allclose(logits(found), logits(expected), atol=2e-5)


def test_buffers_of_every_family_are_compared():
    for name in FAMILIES:
        assert set(FAMILIES[name].buffers) <= CHECKS.keys(), name
    assert set(foreign_weights._BUFFERS) <= CHECKS.keys()


SCALED = dataclasses.replace(CONFIG, rope=RopeConfig(scaling=LinearScaling(factor=4.0)))
PLAIN, DIVIDED = (frequencies(config.rope, 8)[0] for config in (CONFIG, SCALED))
ANGLES = np.exp(1j * np.outer(np.arange(6), PLAIN)).astype(np.complex64)
TRIANGLE = np.tri(6, dtype=bool).reshape(1, 1, 6, 6)
LAYER = "model.layers.1.self_attn.rotary_emb.inv_freq"
BUFFERS = [
    (LAYER, PLAIN, CONFIG, True),
    (LAYER, PLAIN.astype("bfloat16"), CONFIG, True),
    (LAYER, PLAIN.astype(np.float16), CONFIG, True),
    (LAYER, DIVIDED, SCALED, True),
    (LAYER, PLAIN, SCALED, True),
    (LAYER, DIVIDED, CONFIG, False),
    (LAYER, np.ones(4, np.float32), CONFIG, False),
    (LAYER, PLAIN[:2], CONFIG, False),
    ("model.rotary_emb.inv_freq", PLAIN, CONFIG, True),
    ("freqs_cis", ANGLES, CONFIG, True),
    ("freqs_cis", ANGLES**2, CONFIG, False),
    ("freqs_cis", ANGLES.real, CONFIG, False),
    ("transformer.h.0.attn.bias", TRIANGLE, CONFIG, True),
    ("transformer.h.0.attn.bias", TRIANGLE.astype(np.float32), CONFIG, True),
    ("transformer.h.0.attn.bias", np.ones_like(TRIANGLE), CONFIG, False),
    ("transformer.h.0.attn.masked_bias", np.float32(-1e9).reshape(()), CONFIG, True),
    ("transformer.h.0.attn.masked_bias", np.float32(0).reshape(()), CONFIG, False),
    ("bert.embeddings.position_ids", np.arange(9)[None], CONFIG, True),
    ("bert.embeddings.position_ids", np.arange(9)[None] + 2, CONFIG, False),
    ("model.layers.2.eh_proj.weight", np.ones(1), CONFIG, True),
    ("model.layers.2.mlp.up_proj.weight", np.ones(1), CONFIG, False),
]


class Source(dict):
    def read(self, name):
        return self[name]

    def dtype_of(self, name):
        return self[name].dtype


@pytest.mark.parametrize(("name", "array", "config", "good"), BUFFERS)
def test_a_buffer_says_what_the_config_says_or_is_refused(name, array, config, good):
    check = lambda: check_dropped([name], Source({name: array}), config.decoder())  # noqa: E731
    if good:
        check()
    else:
        with pytest.raises(CheckpointError, match=name):
            check()


def test_a_directory_with_a_wrong_buffer_is_refused_and_with_a_right_one_read(exported, tmp_path):
    pretrained.load(copy(exported, tmp_path / "a", lambda t: t.update({LAYER: PLAIN})))
    with pytest.raises(CheckpointError, match="expected the frequencies"):
        pretrained.load(copy(exported, tmp_path / "b", lambda t: t.update({LAYER: DIVIDED})))


@pytest.mark.parametrize("tensor", ["q_proj.bias", "o_proj.bias", "q_norm.weight"])
def test_a_tensor_that_the_config_has_no_place_for_is_refused(tensor, exported, tmp_path):
    name = f"model.layers.0.self_attn.{tensor}"
    with pytest.raises(CheckpointError, match="no place for"):
        pretrained.load(
            copy(exported, tmp_path / "a", lambda t: t.update({name: np.ones(16, np.float32)}))
        )


def test_positions_of_a_dit_are_the_fixed_ones_or_refused():
    config = DitConfig(
        image_size=8, channels=4, classes=3, patch_size=4, d_model=16, n_layers=1, n_heads=2
    )
    good = grid_positions(2, 2, 2, 16)[None]
    dit_files.check_positions(config, Source({dit_files.POSITIONS: good}))
    dit_files.check_positions(config, Source({}))
    for bad in (good + 0.1, good[:, :2]):
        with pytest.raises(CheckpointError, match="pos_embed"):
            dit_files.check_positions(config, Source({dit_files.POSITIONS: bad}))
