"""Published ``config.json`` files of every family: older forms, sizes, and what is refused."""

import pytest
from tests.models.family_cases import ours
from tests.oracle import families

from ziggurat.core import config
from ziggurat.core.errors import ConfigError, ModelError
from ziggurat.models import LanguageModel, family_for_architecture
from ziggurat.models.loading import step_files
from ziggurat.nn.rope import LinearScaling
from ziggurat.train.config import ModelNode

QWEN_2_5 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN_3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
GEMMA_2 = {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
GEMMA_3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "attn_logit_softcapping": None,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
GPT_2 = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "layer_norm_epsilon": 1e-05,
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}
PUBLISHED = {  # with the number of parameters that their pages state
    "Qwen2.5-0.5B": (QWEN_2_5, 494_032_768),
    "Qwen3-0.6B": (QWEN_3, 596_049_920),
    "gemma-2-2b": (GEMMA_2, 2_614_341_888),
    "gemma-3-1b": (GEMMA_3, 999_885_952),
    "gpt2": (GPT_2, 124_439_808),
}


def read(values):
    return family_for_architecture(values["architectures"][0]).from_hf(values)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_size(name):
    values, size = PUBLISHED[name]
    assert LanguageModel.build(read(values)).parameter_count == size


@pytest.mark.parametrize("case", families.CASES + families.ENCODER_CASES)
def test_config_survives_model_json(case):
    plain = config.to_plain(ours(case).config)
    assert step_files.model_config(plain, "model.json") == ours(case).config


@pytest.mark.parametrize("case", families.CASES)
def test_every_config_is_a_model_of_a_run_file(case):
    @config.node
    class Run:
        model: ModelNode

    text = config.to_toml(Run(model=ours(case).config))
    assert config.parse(Run, text).value.model == ours(case).config


def test_older_form_of_gemma3():
    """transformers 4: one scaling, of global layers; the pattern as a number."""
    old = GEMMA_3 | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    found = read(old)
    assert (found.rope.theta, found.local_rope.theta) == (1e6, 1e4)
    assert found.rope.scaling == LinearScaling(factor=8.0)
    assert found.pattern == ("local",) * 5 + ("global",)
    new = {k: v for k, v in old.items() if not k.startswith(("rope", "sliding_window_p"))}
    new["layer_types"] = [
        "full_attention" if i % 6 == 5 else "sliding_attention" for i in range(26)
    ]
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert read(new) == found
    assert len(found.decoder().runs) == 2, "four periods of six, and two local layers"


def test_upper_layers_of_qwen_slide():
    found = read(QWEN_2_5 | {"use_sliding_window": True, "sliding_window": 99})
    windows = [layer.rule.window for layer in found.decoder().layers]
    assert windows == [None] * 21 + [99] * 3
    assert read(QWEN_2_5).window is None


@pytest.mark.parametrize(
    ("values", "change", "part"),
    [
        (QWEN_2_5, {"use_mrope": True}, "use_mrope"),
        (QWEN_2_5, {"is_causal": False}, "is_causal"),
        (QWEN_2_5, {"max_window_layers": "many"}, "max_window_layers"),
        (QWEN_2_5, {"layer_types": ["full_attention"]}, "layer_types"),
        (QWEN_2_5, {"layer_types": ["chunked_attention"] * 24}, "chunked_attention"),
        (QWEN_2_5, {"layer_types": ["sliding_attention"] * 24}, "window"),
        (QWEN_3, {"mlp_bias": True}, "mlp_bias"),
        (QWEN_3, {"rope_scaling": {"rope_type": "longrope"}}, "longrope"),
        (GEMMA_2, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA_2, {"hidden_act": "relu"}, "hidden_act"),
        (GEMMA_2, {"sliding_window": None}, "sliding_window"),
        (GEMMA_2, {"query_pre_attn_scalar": "wide"}, "query_scale"),
        (GEMMA_3, {"final_logit_softcapping": 0.0}, "final_logit_softcapping"),
        (GEMMA_3, {"rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
        (GEMMA_3, {"num_hidden_layers": 2.5}, "num_hidden_layers"),
        (GPT_2, {"add_cross_attention": True}, "add_cross_attention"),
        (GPT_2, {"activation_function": "mish"}, "'mish'"),
        (GPT_2, {"n_head": 7}, "a multiple of 7 heads"),
        (GPT_2, {"rotary_dim": 64}, "rotary_dim"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_implemented_is_refused(values, change, part):
    with pytest.raises(ModelError) as caught:
        read(values | change)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("kind='qwen3'\nwindow=4", "window: found 4"),
        ("kind='qwen3'\npattern=['local']", "window: found None"),
        ("kind='gemma3'\npattern=[]", "pattern"),
        ("kind='gemma2'\nlogit_softcap=-1.0", "logit_softcap"),
        ("kind='gpt2'\nn_kv_heads=2", "n_kv_heads: unknown key"),
        ("kind='qwen4'", "did you mean qwen"),
    ],
)
def test_errors_in_a_run_file(text, part):
    @config.node
    class Run:
        model: ModelNode

    dimensions = "vocab_size=8\nd_model=8\nn_layers=2\nn_heads=2\n"
    with pytest.raises(ConfigError, match=part):
        config.parse(Run, f"[model]\n{dimensions}{text}")
