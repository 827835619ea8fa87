"""Checkpoints of MaxText, Megatron-core and nanoGPT under Hugging Face's names.

Each of these frameworks keeps a model's tensors in a layout of its own: layers stacked or apart,
query, key and value in one tensor, matrices as ``[in, out]`` or split into heads. A view of such a
checkpoint gives every tensor by the name and in the layout that Hugging Face publishes, cut out of
its file when it is read.

Sources of the layouts: MaxText's ``llama_or_mistral_ckpt.py`` (query kernels carry the factor
``1/sqrt(head_dim)``, stacked layers are axis 1), Megatron-LM's ``loader_llama_mistral.py`` (rows of
``linear_qkv`` are grouped by key head) and nanoGPT's ``model.py``.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from ziggurat.core.errors import CheckpointError
from ziggurat.formats.tensors import LazyTensor
from ziggurat.models.families.family import Family
from ziggurat.models.language_model import LanguageModel
from ziggurat.nn.attention import GroupedAttentionConfig

Arrange = Callable[[np.ndarray], np.ndarray]
FAMILIES = {
    "MaxText": ("llama",),
    "Megatron-core": ("llama", "qwen2", "qwen3"),
    "nanoGPT": ("gpt2",),
}
"""Families whose checkpoints are read, by framework."""
SIGNS = {
    "MaxText": "token_embedder.embedding",
    "Megatron-core": "embedding.word_embeddings.weight",
    "nanoGPT": "transformer.wte.weight",
}
"""End of a tensor's name by which a framework is known."""
STATE_OF_LAYERS = ("_extra_state", ".attn.bias", ".attn.masked_bias")
"""Ends of names that hold no weights: scales of fp8 training, masks."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a published tensor lies in a framework's checkpoint."""

    home: str
    """Name there."""
    arrange: Arrange
    """From the array there to the published layout."""
    layer: int | None = None
    """Index along ``axis``, where layers are stacked."""
    axis: int = 0

    def read(self, tensor: LazyTensor) -> np.ndarray:
        if self.layer is None:
            return self.arrange(tensor.read())
        where = (slice(None),) * self.axis + (slice(self.layer, self.layer + 1),)
        return self.arrange(tensor.read(where).squeeze(self.axis))


@dataclasses.dataclass(frozen=True)
class PublishedView:
    """A framework's checkpoint as a source of tensors under published names."""

    framework: str
    prefix: str
    """Prefix of the framework's names."""
    tensors: Mapping[str, LazyTensor]
    places: Mapping[str, Place | np.ndarray]
    """Place of each tensor by its published name, or its value where the framework has none."""
    left_out: int
    """Tensors outside the model: an optimizer's."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def dtype_of(self, name: str) -> np.dtype:
        place = self.places[name]
        return place.dtype if isinstance(place, np.ndarray) else self.tensors[place.home].dtype

    def read(self, name: str) -> np.ndarray:
        place = self.places[name]
        return place if isinstance(place, np.ndarray) else place.read(self.tensors[place.home])


def published_view(
    tensors: Mapping[str, LazyTensor],
    family: Family,
    model: LanguageModel,
    prefix: str | None = None,
) -> PublishedView | None:
    """View of a checkpoint of one of the frameworks; ``None`` for any other.

    nanoGPT's names are those of transformers' GPT-2; its checkpoints are known by their matrices,
    which are ``[out, in]``.

    Args:
        tensors: the checkpoint, without names of wrappers.
        family: of the model's config.
        model: the model to read.
        prefix: of all names; default: found out.

    Raises:
        CheckpointError: the framework is known, but not with this family, or a tensor is missing or
            left over.
    """
    for framework, sign in SIGNS.items():
        found = sorted(name.removesuffix(sign) for name in tensors if name.endswith(sign))
        prefixes = [one for one in found if prefix in (None, one) and _is(framework, one, tensors)]
        if prefixes:
            break
    else:
        return None
    if len(prefixes) > 1:
        raise CheckpointError(
            "tensor names",
            found="the whole model under " + " and ".join(map(repr, prefixes)),
            expected="one prefix",
            fix=f"name it, e.g. --prefix-strip {prefixes[0]}",
        )
    (prefix,) = prefixes
    if family.name not in FAMILIES[framework]:
        raise CheckpointError(
            f"{framework} checkpoint",
            found=f"a config of family {family.name}",
            expected=" or ".join(FAMILIES[framework]),
            fix=f"convert it with {framework}'s own export to Hugging Face, then import hf",
        )
    layout = LAYOUTS[framework](prefix, tensors, model)
    wanted = {
        theirs
        for name in family.hf_names(model.config)
        for theirs in name.all_theirs(model.decoder.n_layers)
    } | {"lm_head.weight"}
    laid_out = {name: layout(name) for name in sorted(wanted)}
    places = {name: place for name, place in laid_out.items() if place is not None}
    homes = {place.home for place in places.values() if isinstance(place, Place)}
    rest = [name for name in tensors if name not in homes]
    model_parts = tuple(prefix + part for part in ("decoder.", "transformer.", "output_layer."))
    extra = [n for n in rest if n.startswith(model_parts) and not n.endswith(STATE_OF_LAYERS)]
    if extra:
        raise CheckpointError(
            f"tensor {extra[0]}",
            found="a name that this architecture has no place for",
            expected=f"only the tensors of {framework} for this config",
            fix="check config.json against the weights",
        )
    return PublishedView(framework, prefix, tensors, places, len(rest))


def _is(framework: str, prefix: str, tensors: Mapping[str, LazyTensor]) -> bool:
    if framework != "nanoGPT":
        return True
    first = tensors.get(f"{prefix}transformer.h.0.attn.c_attn.weight")
    return first is not None and first.shape[0] == 3 * first.shape[1]


class _Layout(abc.ABC):
    """Places of tensors by published name.

    Args:
        prefix: of all names in the checkpoint.
        tensors: the checkpoint.
        model: for its dimensions.
    """

    def __init__(self, prefix: str, tensors: Mapping[str, LazyTensor], model: LanguageModel):
        self.prefix, self.tensors, self.model = prefix, tensors, model

    def __call__(self, name: str) -> Place | np.ndarray | None:
        """Place of a published tensor; ``None`` if the model has no output matrix of its own.

        Raises:
            CheckpointError: the tensor is missing.
        """
        if name.startswith(("model.layers.", "transformer.h.")):
            *_, number, rest = name.split(".", 3)
            return self.of_layer(int(number), rest)
        home, arrange = self.ends()[name]
        if name == "lm_head.weight" and self.prefix + home not in self.tensors:
            return None
        return Place(self._home(home), arrange)

    @abc.abstractmethod
    def ends(self) -> dict[str, tuple[str, Arrange]]:
        """Names and arrangements of all that is not in a layer."""

    @abc.abstractmethod
    def of_layer(self, layer: int, name: str) -> Place | np.ndarray | None:
        """Place of a layer's tensor."""

    def _home(self, *names: str) -> str:
        """The first of these names that the checkpoint has."""
        for name in names:
            if self.prefix + name in self.tensors:
                return self.prefix + name
        raise CheckpointError(
            f"tensor {self.prefix}{names[0]}", found="absent", expected="a tensor of this config"
        )

    @property
    def attention(self) -> GroupedAttentionConfig:
        mixer = self.model.decoder.stacks[0].mixer
        assert isinstance(mixer, GroupedAttentionConfig)
        return mixer

    def rows(self, table: np.ndarray) -> np.ndarray:
        """A table of tokens without the rows that pad it."""
        return table[: self.model.decoder.vocab_size]


def _as_is(array: np.ndarray) -> np.ndarray:
    return array


def _joined_heads(kernel: np.ndarray) -> np.ndarray:
    """``[d, h, c]`` to ``[h c, d]``."""
    return kernel.reshape(kernel.shape[0], -1).T


class _MaxText(_Layout):
    def ends(self) -> dict[str, tuple[str, Arrange]]:
        return {
            "model.embed_tokens.weight": ("token_embedder.embedding", self.rows),
            "model.norm.weight": ("decoder.decoder_norm.scale", _as_is),
            "lm_head.weight": ("decoder.logits_dense.kernel", lambda a: self.rows(a.T)),
        }

    def of_layer(self, layer: int, name: str) -> Place:
        scale = math.sqrt(self.attention.head_dim)
        table: dict[str, tuple[str, Arrange]] = {
            "input_layernorm.weight": ("pre_self_attention_layer_norm.scale", _as_is),
            "post_attention_layernorm.weight": ("post_self_attention_layer_norm.scale", _as_is),
            "self_attn.q_proj.weight": (
                "self_attention.query.kernel",
                lambda a: _joined_heads(a) * np.asarray(scale, a.dtype),
            ),
            "self_attn.k_proj.weight": ("self_attention.key.kernel", _joined_heads),
            "self_attn.v_proj.weight": ("self_attention.value.kernel", _joined_heads),
            "self_attn.o_proj.weight": (
                "self_attention.out.kernel",
                lambda a: a.reshape(-1, a.shape[-1]).T,
            ),
            "mlp.gate_proj.weight": ("mlp.wi_0.kernel", np.transpose),
            "mlp.up_proj.weight": ("mlp.wi_1.kernel", np.transpose),
            "mlp.down_proj.weight": ("mlp.wo.kernel", np.transpose),
        }
        path, arrange = table[name]
        home = self._home(f"decoder.layers.{path}", f"decoder.layers_{layer}.{path}")
        if home.startswith(f"{self.prefix}decoder.layers."):
            return Place(home, arrange, layer, axis=1)
        return Place(home, arrange)


class _Megatron(_Layout):
    def ends(self) -> dict[str, tuple[str, Arrange]]:
        return {
            "model.embed_tokens.weight": ("embedding.word_embeddings.weight", self.rows),
            "model.norm.weight": ("decoder.final_layernorm.weight", _as_is),
            "lm_head.weight": ("output_layer.weight", self.rows),
        }

    def of_layer(self, layer: int, name: str) -> Place:
        module, _, kind = name.rpartition(".")
        paths: dict[str, tuple[tuple[str, ...], Arrange]] = {
            "input_layernorm": (
                ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
                _as_is,
            ),
            "post_attention_layernorm": (
                ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
                _as_is,
            ),
            "self_attn.o_proj": ((f"self_attention.linear_proj.{kind}",), _as_is),
            "self_attn.q_norm": ((f"self_attention.q_layernorm.{kind}",), _as_is),
            "self_attn.k_norm": ((f"self_attention.k_layernorm.{kind}",), _as_is),
            "mlp.gate_proj": ((f"mlp.linear_fc1.{kind}",), lambda a: a[: len(a) // 2]),
            "mlp.up_proj": ((f"mlp.linear_fc1.{kind}",), lambda a: a[len(a) // 2 :]),
            "mlp.down_proj": ((f"mlp.linear_fc2.{kind}",), _as_is),
        }
        for part in ("q", "k", "v"):
            qkv = (f"self_attention.linear_qkv.{kind}",)
            paths[f"self_attn.{part}_proj"] = (qkv, lambda a, part=part: self._part(a, part))
        choices, arrange = paths[module]
        stacked = [f"decoder.layers.{path}" for path in choices]
        apart = [f"decoder.layers.{layer}.{path}" for path in choices]
        home = self._home(*stacked, *apart)
        is_stacked = home.removeprefix(self.prefix) in stacked
        return Place(home, arrange, layer if is_stacked else None)

    def _part(self, fused: np.ndarray, part: str) -> np.ndarray:
        """Query, key or value of rows that stand by key head: its queries, the key, the value."""
        c = self.attention
        group = c.heads // c.kv_heads
        by_head = fused.reshape(c.kv_heads, group + 2, c.head_dim, *fused.shape[1:])
        where = {"q": slice(0, group), "k": slice(group, group + 1), "v": slice(group + 1, None)}
        return by_head[:, where[part]].reshape(-1, *fused.shape[1:])


class _NanoGpt(_Layout):
    def ends(self) -> dict[str, tuple[str, Arrange]]:
        names = ("transformer.wpe.weight", "transformer.ln_f.weight", "transformer.ln_f.bias")
        tables = ("transformer.wte.weight", "lm_head.weight")
        return {name: (name, _as_is) for name in names} | {
            name: (name, self.rows) for name in tables
        }

    def __call__(self, name: str) -> Place | np.ndarray | None:
        if name.endswith("bias") and self.prefix + name not in self.tensors:
            weight = self.tensors[self._home(name.removesuffix("bias") + "weight")]
            return np.zeros(weight.shape[0], weight.dtype)  # trained with bias=False
        return super().__call__(name)

    def of_layer(self, layer: int, name: str) -> Place:
        arrange = np.transpose if name.split(".")[-2].startswith("c_") else _as_is
        return Place(self._home(f"transformer.h.{layer}.{name}"), arrange)


LAYOUTS: dict[str, type[_Layout]] = {
    "MaxText": _MaxText,
    "Megatron-core": _Megatron,
    "nanoGPT": _NanoGpt,
}
