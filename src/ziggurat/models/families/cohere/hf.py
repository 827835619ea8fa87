"""Command models in Hugging Face's ``config.json`` and safetensors."""

from collections.abc import Mapping
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.hf_config import HFConfig, checked
from ziggurat.models.conversion.rotary_order import (
    attention_orders,
    channels_reordered,
    pairs_to_halves,
    reordered,
)
from ziggurat.models.conversion.rotary_settings import hf_rope
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.cohere.config import Cohere2Config, CohereConfig
from ziggurat.models.families.decoder_fields import (
    decoder_names,
    read_fields,
    read_rotary,
    read_windows,
    write_fields,
    write_windows,
)

EPS = "layer_norm_eps"
NORMS = {"attention_norm": "input_layernorm"}
OF_PUBLISHED = {
    "layer_switch": (4,),
    "order_of_interleaved_layers": ("local_attn_first",),
    "position_embedding_type": ("rope_gptj",),
    "rotary_pct": (1.0,),
    "use_embedding_sharing": (True,),
    "use_gated_activation": (True,),
    "use_parallel_block": (True,),
    "use_parallel_embedding": (False, True),
}
"""Keys of Cohere's own code in published files, which say what Cohere 2 is anyway."""


def from_hf(values: Mapping[str, Any]) -> CohereConfig | Cohere2Config:
    """``config.json`` of ``CohereForCausalLM`` or ``Cohere2ForCausalLM`` to config.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    hf = HFConfig(values)
    settings = read_fields(hf, eps=EPS)
    settings |= read_rotary(hf, settings["max_sequence_length"])
    settings |= {key: hf.get(key) for key in ("attention_bias", "logit_scale")}
    if hf.model_type == "cohere":
        settings["head_norm"] = bool(hf.get("use_qk_norm"))
        hf.finish()
        return checked(CohereConfig, settings, "config.json")
    for key, said in OF_PUBLISHED.items():
        hf.refuse_unless(key, said)
    layers, every = hf.whole("num_hidden_layers"), hf.whole("sliding_window_pattern", 4)
    own = settings["d_model"] // (settings["n_heads"] or 1)
    if settings["head_dim"] not in (None, own):
        raise ModelError(
            "config.json: head_dim", found=settings["head_dim"], expected=f"{own}, which is used"
        )
    local = [bool((i + 1) % (every or 1)) for i in range(layers)]
    types = ["sliding_attention" if here else "full_attention" for here in local]
    settings |= read_windows(hf, types, hf.get("sliding_window"))
    hf.finish()
    return checked(Cohere2Config, settings, "config.json")


def to_hf(config: CohereConfig | Cohere2Config) -> dict[str, Any]:
    """Config to ``config.json``."""
    values = {
        **write_fields(config, eps=EPS),
        **hf_rope(config.rope),
        "attention_bias": config.attention_bias,
        "logit_scale": config.logit_scale,
    }
    if isinstance(config, CohereConfig):
        name = {"architectures": ["CohereForCausalLM"], "model_type": "cohere"}
        return name | values | {"use_qk_norm": config.head_norm}
    name = {"architectures": ["Cohere2ForCausalLM"], "model_type": "cohere2"}
    return name | values | write_windows(config)


def hf_names(config: CohereConfig | Cohere2Config) -> list[WeightName]:
    """Weight names in safetensors files, where rotating channels stand in pairs."""
    attention = config.attention()
    orders = attention_orders(attention)
    names = [reordered(name, orders) for name in decoder_names(config.decoder(), NORMS)]
    return [_of_heads(name, attention.head_dim) for name in names]


def _of_heads(name: WeightName, dim: int) -> WeightName:
    """A scale of norms of heads in our order of channels, if the name is of one."""
    if not name.theirs.endswith(("q_norm.weight", "k_norm.weight")):
        return name
    return channels_reordered(name, pairs_to_halves(1, 0, dim))
