"""Every key of transformers' own config classes, off its default: we refuse it, or our logits are
transformers'; and a key that moves nothing there is not refused here.

A sample of the trials; ``python -m tests.oracle.config_values`` runs all of them.
"""

import logging
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tests.oracle import config_parity, config_values

from ziggurat.core.errors import ModelError
from ziggurat.models import FAMILIES, EncoderModel, family_for_config
from ziggurat.models.conversion.architectures import ADDING
from ziggurat.models.conversion.config_keys import HARMLESS, recorded, recorded_classes
from ziggurat.models.conversion.hf_config import HFConfig
from ziggurat.models.conversion.weight_names import import_weights, named_as_found

SHARE = 16
"""One trial in so many is run, and all of the keys below."""
WHOLE = 64
"""One in so many runs transformers' model even where it reads nothing that differs, and so do all
of the keys below; ours runs always."""
ALWAYS = {"is_causal", "tie_word_embeddings", "use_bidirectional_attention", "use_sliding_window"}
TYPES = sorted(config_values.BASES)
ENCODERS = {
    recorded_classes()[one]
    for name in FAMILIES
    for one in FAMILIES[name].architectures
    if FAMILIES[name].encoder
}
"""Types of encoders."""


def base(model_type: str) -> dict:
    """A config of a type."""
    name = config_values.architecture(model_type)
    return {
        "architectures": [name],
        "model_type": model_type,
        **config_values.BASES[model_type][0],
    }


@pytest.mark.parity
@pytest.mark.parametrize("model_type", TYPES)
def test_keys_off_their_defaults(model_type):
    pytest.importorskip("transformers")
    chosen = [
        trial
        for trial in config_values.trials(model_type)
        if trial.number() % SHARE == 0
        or trial.key in ALWAYS
        or (trial.key == "rope_parameters" and trial.value is None)
    ]
    assert len(chosen) > 20
    verdicts = [(trial, trial.verdict(whole=whole(trial))) for trial in chosen]
    faults = [f"{trial}: {verdict.fault}" for trial, verdict in verdicts if verdict.fault]
    assert not faults, "\n".join(faults)


def whole(trial: config_values.Trial) -> bool:
    """Whether transformers' model runs whatever it reads."""
    return trial.key in ALWAYS or trial.number() % WHOLE == 0


def test_every_type_that_is_read_is_tried():
    kinds = {recorded_classes()[one] for name in FAMILIES for one in FAMILIES[name].architectures}
    assert kinds - {"whisper"} == set(TYPES)  # it reads no text alone


@pytest.mark.parametrize("model_type", TYPES)
def test_harmless_keys_are_harmless_in_every_family(model_type):
    values = base(model_type)
    keys = HARMLESS.keys() - {"architectures", "model_type", "is_decoder"}
    changed = values | dict.fromkeys(keys, 3) | {"unsloth_fixed": True, "_name_or_path": "x"}
    aliases = recorded(model_type).aliases
    changed = {k: v for k, v in changed.items() if k in values or k not in aliases}
    changed |= {"top_p": 0.9, "max_length": 20, "attention_dropout": 0.5}
    family = family_for_config(values)
    assert family.from_hf(changed) == family.from_hf(values)


@pytest.mark.parametrize("model_type", TYPES)
def test_unknown_keys(model_type):
    values, family = base(model_type), family_for_config(base(model_type))
    off = {"qkv_bias_of_mine": False, "some_list": [], "some_number": 0, "nothing": None}
    assert family.from_hf(values | off) == family.from_hf(values)
    for value in (True, 1, "x", [1]):
        with pytest.raises(ModelError, match="a_switch_of_mine"):
            family.from_hf(values | {"a_switch_of_mine": value})


@pytest.mark.parametrize("model_type", TYPES)
def test_a_null_switch_is_off_where_that_is_the_default(model_type):
    values, family = base(model_type), family_for_config(base(model_type))
    record = recorded(model_type)
    switches = [key for key, usual in record.defaults.items() if usual is False]
    switches = [key for key in switches if key not in values and key not in record.aliases]
    for key in switches:
        assert family.from_hf(values | {key: None}) == family.from_hf(values), key


@pytest.mark.parametrize("model_type", [t for t in TYPES if t not in ENCODERS])
def test_a_switch_whose_default_is_on_is_not_harmless_when_off(model_type):
    values = base(model_type)
    with pytest.raises(ModelError, match=r"is_causal: found False; expected True, as by default"):
        family_for_config(values).from_hf(values | {"is_causal": False})


def test_dropout_is_noted(caplog):
    values = base("llama") | {"attention_dropout": 0.1}
    with caplog.at_level(logging.INFO):
        family_for_config(values).from_hf(values)
    assert "attention_dropout 0.1: not applied, should this model be trained" in caplog.text


def test_other_names_of_a_key():
    values = base("gpt2")
    renamed = {key: value for key, value in values.items() if key != "n_embd"}
    family = family_for_config(values)
    assert family.from_hf(renamed | {"hidden_size": 32}) == family.from_hf(values)
    with pytest.raises(ModelError, match="hidden_size: found 64, and 32 by its other name"):
        family.from_hf(values | {"hidden_size": 64})


def test_null_is_not_the_default():
    values = base("deepseek_v3")
    with pytest.raises(ModelError, match="norm_topk_prob: found null; expected a value"):
        family_for_config(values).from_hf(values | {"norm_topk_prob": None})
    assert HFConfig(values | {"q_lora_rank": None}).get("q_lora_rank") is None


@pytest.mark.parametrize("model_type", TYPES)
def test_model_type_stands_in_for_architectures(model_type):
    values = base(model_type)
    family = family_for_config(values)
    for without in ({}, {"architectures": None}, {"architectures": []}):
        bare = {k: v for k, v in values.items() if k != "architectures"} | without
        assert family_for_config(bare) is family
        assert family.from_hf(bare) == family.from_hf(values)
    named = {key: value for key, value in values.items() if key != "model_type"}
    assert family_for_config(named) is family


@pytest.mark.parametrize("model_type", TYPES)
def test_other_heads_are_refused_by_what_they_are(model_type):
    for name, task in recorded(model_type).classes.items():
        values = base(model_type) | {"architectures": [name], "tie_word_embeddings": False}
        if task in family_for_config(base(model_type)).tasks:
            family_for_config(values)
            continue
        with pytest.raises(ModelError) as caught:
            family_for_config(values)
        assert f"found {name}" in str(caught.value)
        if task == "sequence":
            assert "a classifier of texts" in str(caught.value)
        if task == "headless":
            assert "without an output head" in str(caught.value)
            family_for_config(values | {"tie_word_embeddings": True})


@pytest.mark.parity
def test_encoder_of_a_masked_language_model():
    """Files of a head of token ids under a config of the encoder alone: the head is left out."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    values = base("bert")
    theirs = config_parity.Theirs(values)
    theirs.model = transformers.BertForMaskedLM(theirs.model.config).eval()
    tensors, family = theirs.tensors, family_for_config(values)
    config = family.as_found(family.from_hf(values), tensors)
    assert (config.head, config.pooler) == ("none", False)
    model = EncoderModel.build(config)
    params = import_weights(
        named_as_found(family.hf_names(config), tensors, family.base),
        tensors,
        model.abstract,
        layers=config.n_layers,
        ignored=lambda name: name.endswith(family.buffers) or family.ignored(config, name),
        place=lambda name, weight: jnp.asarray(weight.read()),
    )
    ids = config_parity.tokens()
    with torch.no_grad():
        expected = theirs.model.bert(torch.from_numpy(ids)).last_hidden_state.numpy()
    with config_parity.plain_operations():
        found = model.hidden(params, jnp.asarray(ids), jnp.ones(ids.shape, int))
    assert config_parity.difference(np.asarray(found), expected) < config_parity.TOLERANCE


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("PhimoeForCausalLM", "nearest is mixtral"),
        ("DeepseekV32ForCausalLM", "nearest is deepseek_v3, but with sparse attention"),
        ("DeepseekV4ForCausalLM", "nearest is deepseek_v3, but with compressed"),
        ("MllamaForConditionalGeneration", "nearest is llama, but with a vision tower"),
        ("BaichuanForCausalLM", "nearest is llama"),
        ("LlamaForCausalML", "did you mean LlamaForCausalLM?"),
        ("GPT2DoubleHeadsModel", "of its kind, GPT2LMHeadModel is read"),
        ("LlamaForRewardModel", "a reward model"),
    ],
)
def test_nearest_family_goes_by_what_is_computed(name, part):
    with pytest.raises(ModelError) as caught:
        family_for_config({"architectures": [name]})
    assert part in str(caught.value)
    assert f"found {name}" in str(caught.value)


# fmt: off
UNKNOWN = {
    "bertic": ("bert", {"type_vocab_size": 2, "position_embedding_type": "absolute",
                        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "is_decoder": False,
                        "add_cross_attention": False, "intermediate_size": 3072}),
    "deep_mind_3": ("deepseek_v3", {"kv_lora_rank": 512, "q_lora_rank": 1536, "n_group": 8,
                                    "topk_group": 4, "n_routed_experts": 256, "v_head_dim": 128,
                                    "qk_nope_head_dim": 128, "first_k_dense_replace": 3}),
    "mamba_9": ("mamba2", {"state_size": 128, "n_groups": 8, "conv_kernel": 4, "expand": 2,
                           "time_step_rank": 256, "chunk_size": 256, "residual_in_fp32": True}),
    "lookout": ("vit", {"image_size": 224, "patch_size": 16, "num_channels": 3, "qkv_bias": True,
                        "encoder_stride": 16, "pooler_act": "tanh", "layer_norm_eps": 1e-12}),
    "listen": ("whisper", {"num_mel_bins": 80, "encoder_layers": 4, "decoder_layers": 4,
                           "max_source_positions": 1500, "decoder_ffn_dim": 1536,
                           "decoder_start_token_id": 50257, "encoder_attention_heads": 6}),
}
# fmt: on
"""Types that nobody knows, with the nearest by what their configs hold."""


@pytest.mark.parametrize("kind", UNKNOWN)
def test_an_unknown_type_is_told_its_nearest_family_and_the_page(kind):
    nearest, values = UNKNOWN[kind]
    with pytest.raises(ModelError) as caught:
        family_for_config({"model_type": kind, "architectures": ["NewModel"], **values})
    said = str(caught.value)
    assert f"by the keys of its config, nearest is {nearest}; docs/how-to/extend.md" in said
    assert "\n" not in said


def test_the_page_on_adding_a_family_is_there():
    page, _, section = ADDING.partition(", '")
    text = (Path(__file__).parents[3] / page).read_text(encoding="utf-8")
    assert f"### {section.partition(chr(39))[0]}\n" in text


@pytest.mark.slow
def test_few_keys_tell_no_family():
    with pytest.raises(ModelError) as caught:
        family_for_config({"model_type": "new", "image_size": 3})
    assert "nearest" not in str(caught.value)
    assert ADDING in str(caught.value)
