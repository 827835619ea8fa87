"""Decoders in GGUF, each described by a record of what llama.cpp has of its own there.

Names of tensors are those of the ``gguf`` package's map from published names; sizes and rotary
settings are read and written by :mod:`ziggurat.models.conversion.gguf_decoder`. What a record says
is what llama.cpp computes: https://github.com/ggml-org/llama.cpp/tree/master/src/models.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion import gguf_decoder
from ziggurat.models.conversion.gguf_decoder import EXPERTS, LAYER_NORM, RMS_NORM
from ziggurat.models.conversion.hf_config import checked
from ziggurat.models.conversion.weight_names import WeightName

NEEDED = object()
"""Default of a key that a file must have."""
Names = Callable[[Any], Iterable[WeightName]]


@dataclasses.dataclass(frozen=True)
class GgufArchitecture:
    """Record of a decoder of llama.cpp: all beside sizes, rotary settings and a norm's epsilon."""

    name: str
    """Value of ``general.architecture``."""
    keys: Mapping[str, tuple[str, Any]] = dataclasses.field(default_factory=dict)
    """Settings by key: the config's field, and its value where the file does not say."""
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings that the architecture has always."""
    told: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Switches by field: the tensor whose presence says that they are on."""
    derived: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda settings: {}
    """Settings that follow from the others in llama.cpp's code."""
    layer_norm: bool = False
    """Whether norms are LayerNorm, whose epsilon has a key of its own."""
    window: bool = False
    """Whether it has layers with a window."""
    tied: bool = False
    """Whether the output matrix is always the embedding."""
    untied: bool = False
    """Whether files always have an output matrix."""
    dense: bool = True
    """Whether it has MLPs beside those of experts, in some layers or as a shared one."""
    square: bool = False
    """Whether all heads together are always as wide as the model."""
    interleaved: bool = False
    """Whether files hold query and key rows in the order of interleaved rotary pairs, and published
    weights in halves."""
    norm_offset: float = 0.0
    """Number by which scales of norms are greater there than in published weights."""
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Tensors by published module, where the gguf package's map has none or another."""

    @property
    def norm(self) -> str:
        """Key of the norms' epsilon."""
        return LAYER_NORM if self.layer_norm else RMS_NORM


def fields(record: GgufArchitecture, config_class: type, hf_names: Names) -> dict[str, Any]:
    """A family's functions for GGUF, by the names of ``Family``'s fields."""

    def from_gguf(
        values: Mapping[str, Any],
        rope_divisors: np.ndarray | None = None,
        tensors: Collection[str] = (),
    ) -> Any:
        return read(record, config_class, values, rope_divisors, tensors)

    def to_gguf(config: Any) -> tuple[dict[str, Any], np.ndarray | None]:
        return write(record, config_class, config, names_of(record, hf_names, config))

    return {
        "from_gguf": from_gguf,
        "to_gguf": to_gguf,
        "gguf_names": lambda config: names_of(record, hf_names, config),
        "gguf_architectures": (record.name,),
    }


def read(
    record: GgufArchitecture,
    config_class: type,
    values: Mapping[str, Any],
    rope_divisors: np.ndarray | None,
    tensors: Collection[str],
) -> Any:
    """A family's config from a file's metadata and the names of its tensors.

    Raises:
        ModelError: a key is missing, or one is set that is not implemented; it is named.
    """
    known: set[str] = {field.name for field in dataclasses.fields(config_class)}
    settings, given = gguf_decoder.read_decoder(
        values,
        record.name,
        rope_divisors,
        record.keys,
        norm=record.norm,
        partial="partial_rotary_factor" in known,
    )
    if not record.window:
        given.require("attention.sliding_window", 0)
        settings["window"] = None
    for key, (field, default) in record.keys.items():
        value = given.need(key) if default is NEEDED else given.get(key, default)
        settings[field] = value
    settings |= record.fixed
    settings |= {field: tensor in tensors for field, tensor in record.told.items()}
    settings |= record.derived(settings)
    if settings.get("d_ff_expert") is not None and not record.dense:
        settings["d_ff"] = None
    settings = {name: value for name, value in settings.items() if name in known}
    return checked(config_class, settings, "GGUF metadata")


def write(
    record: GgufArchitecture, config_class: type, config: Any, names: Iterable[WeightName]
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Metadata below the architecture's name, and rotary divisors.

    Raises:
        ModelError: the config says something that would not be read back.
    """
    if record.tied != config.tie_embeddings and (record.tied or record.untied):
        raise ModelError(
            "export gguf: tie_embeddings",
            found=config.tie_embeddings,
            expected=f"{record.tied}, as llama.cpp's {record.name} has it always",
            fix="export hf",
        )
    if record.square:
        gguf_decoder.check_square(config, record.name)
    mixer = config.decoder().layers[0].block.mixer
    values, divisors = gguf_decoder.write_decoder(config, mixer, record.norm)
    if record.window and config.window is not None:
        values["attention.sliding_window"] = config.window
    for key, (field, _) in record.keys.items():
        value = getattr(config, field)
        if value is not None:
            values[key] = value
    file = gguf_decoder.as_file(values, record.name, config.vocab_size)
    file |= {"general.architecture": record.name}
    present = {name for one in names for name in one.all_theirs(config.n_layers)}
    again = read(record, config_class, file, divisors, present)
    gguf_decoder.check_alike(config, again, record.name)
    return values, divisors


def names_of(record: GgufArchitecture, hf_names: Names, config: Any) -> list[WeightName]:
    """Weight names in GGUF files."""
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(kinds[record.name], config.n_layers)
    attention = gguf_decoder.attention_of(config.decoder().layers[0].block.mixer)
    heads = {"attn_q": attention.heads, "attn_k": attention.kv_heads} if record.interleaved else {}
    renamed = []
    for name in hf_names(config):
        there, suffix = _tensor(record, table, name)
        moved: dict[str, Any] = {}
        module = there.rpartition(".")[2]
        if ".experts." in name.ours:
            moved = {"experts": 1, "part": None, "transpose": suffix == "weight"}
        elif module in heads:
            orders = gguf_decoder.pair_orders(heads[module], attention.head_dim // 2)
            moved = dict(zip(("reorder", "restore"), orders))
        elif record.norm_offset and module.endswith("norm") and suffix == "weight":
            moved = dict(zip(("reorder", "restore"), _shifts(record.norm_offset)))
        renamed.append(dataclasses.replace(name, theirs=f"{there}.{suffix}", **moved))
    return renamed


def _shifts(offset: float) -> tuple[gguf_decoder.Reorder, gguf_decoder.Reorder]:
    """Functions that take an offset away, and add it."""
    return lambda scale: scale - offset, lambda scale: scale + offset


def _tensor(record: GgufArchitecture, table: Any, name: WeightName) -> tuple[str, str]:
    """Name of a weight's module in llama.cpp, and ``weight`` or ``bias``."""
    stem, _, suffix = name.theirs.rpartition(".")
    if suffix not in ("weight", "bias"):  # a parameter without a module of its own
        stem, suffix = name.theirs, "weight"
    if ".experts." in name.ours:
        prefix = "blk.{layer}." + EXPERTS[name.ours.split(".")[-2]]
        return prefix, "bias" if name.ours.endswith("bias") else "weight"
    key = stem.partition("{layer}.")[2] or stem
    found = record.names.get(key, "output" if key == "lm_head" else None)
    if found is None:
        found = table.get_name(stem.replace("{layer}", "0"))
        if found is None:
            raise ModelError(f"export gguf {stem}", found="no name in llama.cpp", expected="one")
        return found.replace("blk.0.", "blk.{layer}."), suffix
    return ("blk.{layer}." + found if "{layer}" in stem else found), suffix
