"""Mistral 3 and Pixtral 12B in Hugging Face's ``config.json`` and safetensors."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ziggurat.core.errors import DataError, ModelError
from ziggurat.models.conversion.hf_config import HFConfig, activation, checked, hf_activation
from ziggurat.models.conversion.text_part import MULTIMODAL_TYPES, Part
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.encoder_fields import linears, norms
from ziggurat.models.families.llava.hf import TOWER, depth_of, vision_table
from ziggurat.models.families.pixtral.config import (
    LlavaPixtralConfig,
    Mistral3Config,
    PixtralFields,
)
from ziggurat.models.image_places import Grid, token_count
from ziggurat.models.patch_processor import PatchProcessor
from ziggurat.models.pixtral_processor import PixtralProcessorConfig
from ziggurat.models.vision_language_model import PreparedImage, blank

PIXTRAL = "pixtral"
SIZES = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "patch_size": "patch_size",
    "image_size": "image_size",
    "init_std": "initializer_range",
}
"""Dimensions of the tower, here and there."""


def from_hf(values: Mapping[str, Any], language: Any) -> PixtralFields:
    """``config.json`` of ``Mistral3ForConditionalGeneration``, or of
    ``LlavaForConditionalGeneration`` with Pixtral's tower, to config.

    Args:
        values: the file.
        language: config of the language model in it.

    Raises:
        ModelError: a key is missing, or a switch is set that the family does not implement.
    """
    kind = str(values.get("model_type", "mistral3"))
    hf = HFConfig(values, kind)
    hf.given("text_config")
    found: dict[str, Any] = {
        "language": language,
        "image": _tower(vision_table(hf, PIXTRAL), hf.get("vision_feature_layer")),
        "image_token": hf.get("image_token_index"),
        "activation": activation(hf, "projector_hidden_act"),
        "projector_bias": hf.get("multimodal_projector_bias"),
    }
    hf.given("tie_word_embeddings")  # the language model's config has it
    if kind == "mistral3":
        found["merge_size"] = hf.get("spatial_merge_size")
        hf.finish()
        return checked(Mistral3Config, found, "config.json")
    whole = hf.get("vision_feature_select_strategy")
    if whole != "full":
        raise ModelError(
            "config.json: vision_feature_select_strategy", found=repr(whole),
            expected="'full': Pixtral's tower has no class token",
        )  # fmt: skip
    hf.given("image_seq_length")  # it follows from the image's size
    hf.finish()
    return checked(LlavaPixtralConfig, found, "config.json")


def _tower(values: Mapping[str, Any], layer: Any) -> dict[str, Any]:
    """The tower's settings, up to the layer whose states are read."""
    hf = HFConfig(values, PIXTRAL)
    found = {ours: hf.get(theirs) for ours, theirs in SIZES.items()}
    width, heads = hf.whole("hidden_size", 1024), hf.whole("num_attention_heads", 16)
    rope = dict(hf.get("rope_parameters", {}))
    found["rope_theta"] = rope.pop("rope_theta", hf.get("rope_theta"))
    if rope not in ({}, {"rope_type": "axial"}):
        raise ModelError(
            "config.json: vision_config.rope_parameters", found=rope, expected="type axial"
        )
    found["activation"] = activation(hf)
    each = isinstance(layer, list) and len(layer) == 1
    layers = hf.whole("num_hidden_layers", 24)
    found["n_layers"] = depth_of(layer[0] if each else layer, layers)
    hf.refuse_unless("head_dim", (width // max(heads, 1),), "it follows from width and heads")
    hf.refuse_unless("num_channels", (3,), "pictures are read in RGB")
    hf.given("vocab_size")  # of the default in transformers 5; a tower has none
    hf.finish()
    return found


def to_hf(config: PixtralFields, language: Mapping[str, Any]) -> dict[str, Any]:
    """Config to ``config.json``.

    Args:
        config: the config.
        language: ``config.json`` of the language model.

    Raises:
        ModelError: the language model is of a type that the architecture does not take.
    """
    image = config.image
    vision = {theirs: getattr(image, ours) for ours, theirs in SIZES.items()}
    vision |= {"model_type": PIXTRAL, "hidden_act": hf_activation(image.activation)}
    vision |= {"head_dim": image.d_model // image.n_heads, "num_channels": 3}
    values = {
        "text_config": _text(config, language),
        "vision_config": vision | {"rope_theta": image.rope_theta},
        "image_token_index": config.image_token,
        "vision_feature_layer": -1,
        "projector_hidden_act": hf_activation(config.activation),
        "multimodal_projector_bias": config.projector_bias,
        "tie_word_embeddings": language.get("tie_word_embeddings", False),
    }
    if isinstance(config, Mistral3Config):
        own = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"}
        return own | values | {"spatial_merge_size": config.merge_size}
    own = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
    tokens = (image.image_size // image.patch_size) ** 2
    full = {"vision_feature_select_strategy": "full", "image_seq_length": tokens}
    return own | values | full


def _text(config: PixtralFields, language: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the text: a Llama without biases is what Mistral computes without a window."""
    biases, found = ("attention_bias", "mlp_bias"), dict(language)
    if found.get("model_type") == "llama" and not any(found.get(key) for key in biases):
        found = {key: value for key, value in found.items() if key not in biases}
        own = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
        found |= own | {"sliding_window": None}
    known = MULTIMODAL_TYPES["mistral3" if isinstance(config, Mistral3Config) else "llava"]
    if found.get("model_type") not in known.text:
        raise ModelError(
            "export to Hugging Face", found=f"a text of type {found.get('model_type')!r}",
            expected=" or ".join(known.text) + f" for {known.architecture}",
        )  # fmt: skip
    return found


def tower_weights(config: PixtralFields) -> list[WeightName]:
    """Weight names of the tower and projector."""
    side, block = config.image.patch_size, TOWER + "transformer.layers.{layer}."
    pairs = {part: f"attention.{part[0]}_proj" for part in ("query", "key", "value", "out")}
    names = {f"blocks.attention.{ours}": block + theirs for ours, theirs in pairs.items()}
    for part in ("gate", "up", "down"):
        names[f"blocks.mlp.{part}"] = f"{block}feed_forward.{part}_proj"
    kinds = {"attention_norm": "attention_norm", "mlp_norm": "ffn_norm"}
    layers = linears(names, bias=False)
    layers += norms({f"blocks.{n}": block + there for n, there in kinds.items()}, bias=False)
    numbers = tuple(range(config.image.n_layers))
    [patches] = linears({"projection": TOWER + "patch_conv"}, bias=False)
    stored = (config.image.d_model, 3, side, side)
    there = "multi_modal_projector."
    ends = {"merger.mlp.up": there + "linear_1", "merger.mlp.down": there + "linear_2"}
    found = [
        *(dataclasses.replace(name, layers=numbers) for name in layers),
        dataclasses.replace(patches, stored_shape=stored),
        *norms({"input_norm": TOWER + "ln_pre"}, bias=False),
        *linears(ends, bias=config.projector_bias),
    ]
    if not isinstance(config, Mistral3Config):
        return found
    merging = {"merger.merge": there + "patch_merger.merging_layer"}
    norm = norms({"merger.norm": there + "norm"}, bias=False)
    return [*found, *norm, *linears(merging, bias=False)]


def ignored(config: PixtralFields, name: str) -> bool:
    """Whether a tensor is of a layer behind the one whose states are read."""
    layer = name.removeprefix(TOWER + "transformer.layers.").partition(".")[0]
    return layer.isdigit() and int(layer) >= config.image.n_layers


def published_name(part: Part, name: str) -> str:
    """Name in published files, from a tensor's name in its part.

    >>> published_name("text", "lm_head.weight"), published_name("image", "vision_tower.ln_pre")
    ('language_model.lm_head.weight', 'vision_tower.ln_pre')
    """
    return f"language_model.{name}" if part == "text" else name


def prepare(
    config: PixtralFields, processor: PixtralProcessorConfig, pictures: Sequence[Any]
) -> list[PreparedImage]:
    """Pictures as the tower reads them.

    Raises:
        DataError: a picture cannot be decoded or is larger than the tower reads, or the processor
            cuts other patches than it reads.
    """
    _check(config, processor)
    patches, grids = PatchProcessor(processor)(pictures)
    prepared, start = [], 0
    for grid in grids:
        count = grid[0] * grid[1]
        prepared.append(_image(config, patches[start : start + count], grid))
        start += count
    return prepared


def measure(
    config: PixtralFields, processor: PixtralProcessorConfig, size: tuple[int, int]
) -> PreparedImage:
    """A picture of this height and width as the tower reads it, without its pixels."""
    _check(config, processor)
    grid = processor.grid(*size)
    return _image(config, blank(grid[0] * grid[1], 3 * config.image.patch_size**2), grid)


def _image(config: PixtralFields, pixels: Any, grid: Grid) -> PreparedImage:
    side, most = config.merged, -(-config.image.image_size // config.image.patch_size)
    most = -(-most // side) * side
    if max(grid) > most:
        raise DataError(
            "picture", found=f"{grid[0]} x {grid[1]} patches", expected=f"at most {most} a side",
            fix="lower size in preprocessor_config.json",
        )  # fmt: skip
    return PreparedImage(pixels, token_count(grid, side), grid, grid[1] // side)


def _check(config: PixtralFields, processor: PixtralProcessorConfig) -> None:
    """Refuse patches of another size than the tower reads."""
    wanted = [config.image.patch_size, config.merged]
    found = [processor.patch_size, processor.merge_size]
    if found != wanted:
        raise DataError(
            "image processor's patch size and merge size", found=found,
            expected=f"{wanted}, as the model has", fix="correct processor_config.json",
        )  # fmt: skip
