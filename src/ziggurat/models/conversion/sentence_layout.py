"""The files by which sentence-transformers says how an encoder's states become one vector:
``modules.json``, the pooling module's config, and the longest text."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ziggurat.core import config
from ziggurat.core.errors import ModelError
from ziggurat.nn.pooling import Pooling as StatePooling

Pooling = Literal["mean", "cls", "max", "mean_sqrt_len_tokens", "lasttoken"]
"""Ways of pooling by sentence-transformers' names."""
_MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_lasttoken": "lasttoken",
}
_STATES: dict[Pooling, StatePooling] = {
    "mean": "mean",
    "cls": "first",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_length",
    "lasttoken": "last",
}
MODULES = "modules.json"
"""The file by which a directory is known to be of sentence-transformers."""
_PACKAGE = "sentence_transformers.models."


@config.node
class SentenceConfig:
    """From the states of a text's tokens to its vector."""

    pooling: Pooling = "mean"
    """The states' mean, the first token's (cls), their largest by channel, their sum over the root
    of their number, or the last token's."""
    normalize: bool = False
    """Divide the vector by its length."""
    bidirectional: bool = False
    """Bidirectional attention in a decoder that embeds texts: tokens see later ones too."""
    score: Literal["sigmoid", "none"] = "sigmoid"
    """Function of the logit by which a cross-encoder scores a pair of texts."""
    max_length: int
    """Longest text in tokens; longer ones are cut."""

    def __post_init__(self):
        config.require(self.max_length >= 1, "max_length", self.max_length, "a number >= 1")

    @property
    def states(self) -> StatePooling:
        """The way of pooling by our name."""
        return _STATES[self.pooling]


def read_score(values: Mapping[str, Any]) -> Literal["sigmoid", "none"]:
    """Function of a cross-encoder's logit from ``config.json``; the sigmoid where it says nothing,
    as sentence-transformers takes it for one label.

    Raises:
        ModelError: another function than these.
    """
    nested = values.get("sentence_transformers")
    nested = nested.get("activation_fn") if isinstance(nested, Mapping) else None
    name = nested or values.get("sbert_ce_default_activation_function")
    if name is None or str(name).endswith("Sigmoid"):
        return "sigmoid"
    if str(name).endswith("Identity"):
        return "none"
    raise ModelError(
        "config.json: activation_fn of sentence_transformers",
        found=repr(name),
        expected="torch.nn.modules.activation.Sigmoid or torch.nn.modules.linear.Identity",
    )


def hf_score(sentence: SentenceConfig) -> dict[str, Any]:
    """The reverse of :func:`read_score`."""
    kind = "activation.Sigmoid" if sentence.score == "sigmoid" else "linear.Identity"
    return {"sentence_transformers": {"activation_fn": f"torch.nn.modules.{kind}"}}


def read_layout(path: Path, width: int, longest: int) -> SentenceConfig:
    """Pooling and layers of a directory; without ``modules.json`` the mean, as the library takes
    it.

    Args:
        path: the model's directory.
        width: the encoder's, which the pooling module must have.
        longest: the encoder's longest sequence.

    Raises:
        ModelError: a module, a way of pooling or a setting that is not implemented.
    """
    settings = _json(path / "sentence_bert_config.json", {})
    if settings.get("do_lower_case"):
        raise ModelError(
            "sentence_bert_config.json: do_lower_case",
            found="true",
            expected="false: the tokenizer says how text is normalised",
        )
    length = min(settings.get("max_seq_length") or longest, longest)
    prompts = _json(path / "config_sentence_transformers.json", {})
    if prompts.get("default_prompt_name") is not None:
        raise ModelError(
            "config_sentence_transformers.json: default_prompt_name",
            found=repr(prompts["default_prompt_name"]),
            expected="null",
            fix="put the prompt before the text yourself",
        )
    modules = _json(path / MODULES, None)
    if modules is None:
        return SentenceConfig(max_length=length)
    modules = sorted(modules, key=lambda module: module.get("idx", 0))
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ModelError(
            "modules.json",
            found=", ".join(kinds) or "nothing",
            expected="Transformer, Pooling and perhaps Normalize",
        )
    if modules[0].get("path"):
        raise ModelError(
            "modules.json: path of Transformer",
            found=repr(modules[0]["path"]),
            expected="the directory itself",
        )
    mode = _pooling(_json(path / modules[1].get("path", "") / "config.json", {}), width)
    return SentenceConfig(pooling=mode, normalize=len(kinds) == 3, max_length=length)


def _pooling(values: dict[str, Any], width: int) -> Pooling:
    where = "pooling config.json"
    size = values.get("word_embedding_dimension", width)
    if size != width:
        raise ModelError(f"{where}: word_embedding_dimension", found=size, expected=width)
    chosen = [key for key, value in values.items() if key.startswith("pooling_mode_") and value]
    if values.get("pooling_mode") in _MODES.values():
        chosen = [key for key, mode in _MODES.items() if mode == values["pooling_mode"]]
    if len(chosen) != 1 or chosen[0] not in _MODES:
        raise ModelError(
            f"{where}: pooling mode",
            found=", ".join(chosen) or repr(values.get("pooling_mode", "none")),
            expected="one of " + ", ".join(_MODES),
        )
    return _MODES[chosen[0]]


def layout_files(sentence: SentenceConfig, width: int) -> dict[str, Any]:
    """JSON contents of the files that :func:`read_layout` reads, by path in the directory.

    Args:
        sentence: how states become a vector.
        width: length of the vector.
    """
    kinds = ["Transformer", "Pooling", *(["Normalize"] if sentence.normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": _PACKAGE + kind}
        for i, kind in enumerate(kinds)
    ]
    modes = {key: mode == sentence.pooling for key, mode in _MODES.items()}
    return {
        MODULES: modules,
        "1_Pooling/config.json": {"word_embedding_dimension": width, **modes},
        "sentence_bert_config.json": {
            "max_seq_length": sentence.max_length,
            "do_lower_case": False,
        },
    }


def _json(file: Path, default: Any) -> Any:
    if not file.is_file():
        return default
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(str(file), found=error, expected="valid JSON") from None
