"""Config fields, keys of ``config.json`` and weight names that families of encoders share."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from ziggurat.core import config
from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.architectures import task_of
from ziggurat.models.conversion.hf_config import HFConfig, activation, hf_activation
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.nn.attention import GroupedAttentionConfig
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.encoder_heads import LogitHeadConfig, TransformConfig
from ziggurat.nn.mlp import Activation, PlainMlpConfig
from ziggurat.nn.norm import NormConfig

EncoderHead = Literal["none", "masked_lm", "sequence", "token", "replaced"]
"""Head of an encoder: none, logits of token ids (masked language modelling), logits of labels for a
whole text or image, or for each token, or for each token whether it was replaced (ELECTRA)."""
_HEADS: Mapping[str, EncoderHead] = {
    "headless": "none",
    "masked": "masked_lm",
    "sequence": "sequence",
    "token": "token",
    "image": "sequence",
    "replaced": "replaced",
}
"""Heads by the task of transformers' class."""
TEXT_TASKS = ("headless", "masked", "sequence", "token")
"""Tasks of the classes that families of text encoders read."""


@config.node
class EncoderFields:
    """Dimensions of an encoder of plain transformer blocks, and its head."""

    d_model: int
    """Model width."""
    n_layers: int
    """Blocks."""
    n_heads: int
    """Heads."""
    d_ff: int | None = None
    """Feed-forward width; default ``4 d_model``."""
    activation: Activation = "gelu"
    """Function between the two matmuls of the feed-forward block."""
    norm_eps: float = 1e-12
    """Added to the variance in norms."""
    init_std: float = 0.02
    """Standard deviation of initial weights."""
    head: EncoderHead = "none"
    """Head over the states."""
    labels: tuple[str, ...] = ()
    """Names of the labels that a head of kind ``sequence`` or ``token`` gives logits for."""

    def __post_init__(self):
        for name in ("d_model", "n_layers", "n_heads"):
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")
        config.require(self.d_ff is None or self.d_ff >= 1, "d_ff", self.d_ff, "a number >= 1")
        divides = self.d_model % self.n_heads == 0
        config.require(divides, "d_model", self.d_model, f"a multiple of {self.n_heads} heads")
        labelled = self.head in ("sequence", "token")
        expected = "names of labels" if labelled else f"none, for the head {self.head!r}"
        config.require(labelled == bool(self.labels), "labels", list(self.labels), expected)

    @property
    def feed_forward(self) -> int:
        """Hidden width of the feed-forward block: ``d_ff``, by default 4 times ``d_model``."""
        return self.d_ff or 4 * self.d_model

    @property
    def rule(self) -> AttentionRule:
        """Attention to all tokens."""
        return AttentionRule((self.d_model // self.n_heads) ** -0.5)

    def norm(self, *, bias: bool = True) -> NormConfig:
        """A layer norm."""
        return NormConfig(kind="layer", eps=self.norm_eps, bias=bias)

    def attention(self, *, bias: bool = True, out_bias: bool = True) -> GroupedAttentionConfig:
        """Attention with as many heads of keys as of queries."""
        return GroupedAttentionConfig(
            heads=self.n_heads,
            kv_heads=self.n_heads,
            head_dim=self.d_model // self.n_heads,
            bias=bias,
            out_bias=out_bias,
        )

    def plain_layers(self, **switches: Any) -> tuple[LayerConfig, ...]:
        """Layers of attention and a plain feed-forward part, with layer norms and biases."""
        mlp = PlainMlpConfig(hidden=self.feed_forward, activation=self.activation)
        block = BlockConfig(mixer=self.attention(), mlp=mlp, norm=self.norm(), **switches)
        return (LayerConfig(block=block, rule=self.rule, rope=None),) * self.n_layers

    def head_config(
        self,
        *,
        sequence: TransformConfig | None = None,
        token: TransformConfig | None = None,
        masked: TransformConfig | None = None,
        bias: bool = True,
    ) -> LogitHeadConfig | None:
        """The head.

        Args:
            sequence: layer before the output matrix of a head of texts.
            token: the same of a head of tokens.
            masked: the same of a head of token ids.
            bias: whether logits of token ids have a bias.
        """
        if self.head == "none":
            return None
        if self.head == "masked_lm":
            return LogitHeadConfig(reads="states", outputs=None, transform=masked, bias=bias)
        if self.head == "token":
            return LogitHeadConfig(reads="states", outputs=len(self.labels), transform=token)
        return LogitHeadConfig(reads="pooled", outputs=len(self.labels), transform=sequence)


@config.node
class TextEncoderFields(EncoderFields):
    """Dimensions of an encoder of texts."""

    vocab_size: int
    """Vocabulary entries."""
    max_sequence_length: int = 512
    """Longest sequence in tokens."""

    def __post_init__(self):
        EncoderFields.__post_init__(self)
        for name in ("vocab_size", "max_sequence_length"):
            config.require(getattr(self, name) >= 1, name, getattr(self, name), "a number >= 1")


def read_head(hf: HFConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings ``head`` and ``labels`` by the architecture, and by ``id2label`` or ``num_labels``.

    Raises:
        ModelError: the labels are no table of names by number, or there are none.
    """
    head = _HEADS.get(task_of(values, hf.model_type), "none")
    names, count = hf.given("id2label"), hf.given("num_labels")
    if head not in ("sequence", "token"):
        return {"head": head}
    if names is None:
        names = {i: f"LABEL_{i}" for i in range(2 if count is None else hf.whole("num_labels"))}
    try:
        by_number = {int(number): str(name) for number, name in dict(names).items()}
        labels = tuple(by_number[i] for i in range(len(by_number)))
    except (KeyError, TypeError, ValueError):
        labels = ()
    if not labels:
        raise ModelError(
            "config.json: id2label", found=repr(names), expected="names by number from 0"
        )
    return {"head": head, "labels": labels}


def read_tied(hf: HFConfig, head: EncoderHead) -> None:
    """Refuse a head of token ids whose matrix is not the embedding.

    Raises:
        ModelError: ``tie_word_embeddings`` is off, and there is such a head.
    """
    if head == "masked_lm":
        hf.refuse_unless("tie_word_embeddings", (True,), "the head's matrix is the embedding here")
    else:
        hf.given("tie_word_embeddings")


def read_sizes(hf: HFConfig) -> dict[str, Any]:
    """Dimensions by the keys that BERT has, and most encoders of texts after it.

    Raises:
        ModelError: a key is missing.
    """
    return {
        "vocab_size": hf.need("vocab_size"),
        "d_model": hf.need("hidden_size"),
        "n_layers": hf.need("num_hidden_layers"),
        "n_heads": hf.need("num_attention_heads"),
        "d_ff": hf.need("intermediate_size"),
        "activation": activation(hf),
        "norm_eps": hf.get("layer_norm_eps"),
        "init_std": hf.get("initializer_range"),
    }


def hf_sizes(settings: Any) -> dict[str, Any]:
    """The reverse of :func:`read_sizes`, for a family's config; dropout is off."""
    return {
        "vocab_size": settings.vocab_size,
        "hidden_size": settings.d_model,
        "num_hidden_layers": settings.n_layers,
        "num_attention_heads": settings.n_heads,
        "intermediate_size": settings.feed_forward,
        "hidden_act": hf_activation(settings.activation),
        "layer_norm_eps": settings.norm_eps,
        "initializer_range": settings.init_std,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def hf_head(settings: Any, classes: Mapping[EncoderHead, str]) -> dict[str, Any]:
    """The reverse: ``architectures``, and names of labels.

    Args:
        settings: the family's config.
        classes: transformers' class by head.
    """
    values: dict[str, Any] = {"architectures": [classes[settings.head]]}
    if settings.labels:
        values["id2label"] = {str(i): name for i, name in enumerate(settings.labels)}
        values["label2id"] = {name: i for i, name in enumerate(settings.labels)}
    return values


def without(settings: Any, present: Iterable[str], **endings: str) -> Any:
    """The config without what a checkpoint does not hold, though its architecture may have it: the
    pooler, and a head of token ids.

    Args:
        settings: the family's config.
        present: names of the checkpoint's tensors.
        endings: how a tensor's name ends that is there with ``pooler`` or ``masked_lm``.
    """
    names = list(present)

    def there(part: str) -> bool:
        return any(name.endswith(endings[part]) for name in names)

    if "pooler" in endings and settings.head != "sequence":
        settings = dataclasses.replace(settings, pooler=there("pooler"))
    if settings.head == "masked_lm" and not there("masked_lm"):
        settings = dataclasses.replace(settings, head="none")
    return settings


def left_out(settings: Any, name: str, *heads: str, pooler: str | None = "pooler.dense.") -> bool:
    """Whether a tensor belongs to a part that a checkpoint holds and the model has not: a head of
    token ids where none is wanted, or a pooler that the head does not read.

    Args:
        settings: the family's config.
        name: the tensor's name.
        heads: how names of the tensors of a head of token ids begin.
        pooler: what is in the names of a pooler's tensors, where a head of texts reads none.
    """
    if settings.head == "none" and name.startswith(heads):
        return True
    return settings.head == "sequence" and pooler is not None and pooler in name


def linears(table: Mapping[str, str], *, bias: bool = True) -> list[WeightName]:
    """Names of linear layers, ours and theirs."""
    names = []
    for ours, theirs in table.items():
        names.append(WeightName(f"{ours}.kernel", f"{theirs}.weight", transpose=True))
        names += [WeightName(f"{ours}.bias", f"{theirs}.bias")] if bias else []
    return names


ONE_LAYER: Mapping[str, str] = {"head.out": "classifier"}
"""Names of a head of labels that is a matrix alone, ours and theirs."""
TWO_LAYERS: Mapping[str, str] = {
    "head.transform.dense": "classifier.dense",
    "head.out": "classifier.out_proj",
}
"""Names of a head of labels with a layer before its matrix."""


def head_names(
    settings: Any, masked: tuple[str, str, str], sequence: Mapping[str, str] = ONE_LAYER
) -> list[WeightName]:
    """Names of a head's tensors.

    Args:
        settings: the family's config.
        masked: of a head of token ids: its dense layer, its norm, and the bias on its logits.
        sequence: of a head of texts, its layers by ours.
    """
    if settings.head == "masked_lm":
        dense, norm, bias = masked
        names = linears({"head.transform.dense": dense}) + norms({"head.transform.norm": norm})
        return [*names, WeightName("head.bias", bias)]
    tables = {"sequence": sequence, "token": ONE_LAYER}
    return linears(tables.get(settings.head, {}))


def norms(table: Mapping[str, str], *, bias: bool = True) -> list[WeightName]:
    """Names of layer norms, ours and theirs."""
    names = []
    for ours, theirs in table.items():
        names.append(WeightName(f"{ours}.scale", f"{theirs}.weight"))
        names += [WeightName(f"{ours}.bias", f"{theirs}.bias")] if bias else []
    return names
