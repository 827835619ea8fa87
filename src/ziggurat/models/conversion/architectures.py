"""Names of published architectures: which type of model a ``config.json`` is of, what its head is
for, and which family is nearest to one that is not read."""

import collections
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.config_keys import is_harmless, recorded, recorded_classes

OTHER_TYPES = {"kimi_k2": "deepseek_v3"}
"""Model types of publishers' own code whose computation is that of one we read."""

HEADS = {
    "ForSequenceClassification": "a classifier of texts: its head gives labels, not tokens",
    "ForTokenClassification": "a classifier of tokens: its head gives labels, not tokens",
    "ForQuestionAnswering": "a reader: its head marks the span that answers a question",
    "ForMultipleChoice": "a classifier: its head scores choices",
    "ForNextSentencePrediction": "a classifier of pairs of texts",
    "ForRewardModel": "a reward model: its head gives a score, not tokens",
    "ForRewardModeling": "a reward model: its head gives a score, not tokens",
    "ForProcessRewardModel": "a reward model: its head gives scores, not tokens",
    "ForConditionalGeneration": "a model of images, sound or of an encoder and a decoder",
    "ForImageTextToText": "a model of images and text",
    "ForMaskedLM": "an encoder with a head that fills in masked tokens",
    "ForPreTraining": "a model with the heads of its pretraining",
    "DoubleHeadsModel": "a model with a second head that scores choices",
    "WithValueHead": "a language model with a value head, of reinforcement learning",
    "TextModel": "a decoder without an output head: it gives states, not tokens",
    "Model": "a decoder without an output head: it gives states, not tokens",
}
"""Kinds of architectures that are no language models, by the end of the name."""

RELATIVES: Mapping[str, tuple[str, str]] = {
    "apertus": ("arcee", "with norms of heads and an activation that is learned"),
    "aquila": ("llama", "under another name"),
    "baichuan": ("llama", "with one matrix for query, key and value"),
    "bitnet": ("llama", "with ternary weights"),
    "deberta": ("deberta-v2", "with one matrix for query, key and value"),
    "deepseek": ("mixtral", "with shared experts"),
    "deepseekv32": ("deepseek_v3", "with sparse attention"),
    "deepseekv4": ("deepseek_v3", "with compressed attention and several residual streams"),
    "dinov3convnext": ("dinov3_vit", "with convolutions instead of attention"),
    "exaone": ("llama", "with other names of weights"),
    "gemma3n": (
        "gemma4",
        "with several residual streams, a low-rank branch and sparse activations",
    ),
    "glm4moelite": ("deepseek_v3", "under other keys"),
    "glmmoedsa": ("deepseek_v3", "with sparse attention"),
    "gptbigcode": ("gpt2", "with one key and value head"),
    "gptj": ("gpt_neox", "with one norm for both branches and other names"),
    "gptneo": ("gpt2", "with windows in every other layer"),
    "internlm": ("llama", "with biases"),
    "internlm2": ("llama", "with one matrix for query, key and value"),
    "internlm3": ("llama", "with other biases"),
    "llama4": ("llama", "with experts, chunked attention and a vision tower"),
    "minicpm": ("llama", "with multipliers on embeddings, residuals and logits"),
    "mllama": ("llama", "with a vision tower"),
    "olmo": ("llama", "with LayerNorm without weights"),
    "phimoe": ("mixtral", "with LayerNorm and another router"),
    "qwen": ("qwen2", "with one matrix for query, key and value, under other names"),
    "yi": ("llama", "under an older name; newer files say LlamaForCausalLM"),
}
"""The nearest family by what is computed, and the difference, by model type without underscores."""
_HEAD = re.compile(r"(For[A-Z]|LMHead|DoubleHeads|With[A-Z]|TextModel$|Model$).*")


def model_type_of(values: Mapping[str, Any]) -> str:
    """Transformers' type of model of a ``config.json``: its ``model_type``, or that of its
    architecture.

    Raises:
        ModelError: neither is known, or they disagree.
    """
    architecture, said = architecture_of(values), values.get("model_type")
    by_class = _types().get(architecture.lower())
    by_type = None if said is None else OTHER_TYPES.get(str(said), str(said))
    if by_class is None and (architecture or by_type is None or not recorded(by_type).classes):
        raise _unknown(architecture or str(said or ""), values)
    if by_class is not None and by_type not in (None, by_class):
        raise ModelError(
            "config.json: model_type",
            found=repr(said),
            expected=f"{by_class!r}, as architectures says {architecture}",
            fix="correct the one that is wrong",
        )
    return str(by_class or by_type)


def architecture_of(values: Mapping[str, Any]) -> str:
    """The architecture that a ``config.json`` names; empty where it names none.

    Raises:
        ModelError: it is no list of names.
    """
    names = values.get("architectures") or []
    if not isinstance(names, list):
        raise ModelError(
            "config.json: architectures", found=repr(names), expected="a list of names"
        )
    return str(names[0]) if names else ""


def task_of(values: Mapping[str, Any], model_type: str) -> str:
    """Task of the class that a ``config.json`` names, ``causal`` or ``sequence``, by transformers'
    tables; empty where it names none, or one of another type."""
    tasks = {name.lower(): task for name, task in recorded(model_type).classes.items()}
    return tasks.get(architecture_of(values).lower(), "")


def check_head(values: Mapping[str, Any], model_type: str, tasks: Sequence[str]) -> None:
    """Refuse an architecture whose head is not that of what is read.

    A decoder without a head is read where its head is its embedding (``tie_word_embeddings``).

    Args:
        values: the ``config.json``.
        model_type: its type of model.
        tasks: tasks of the classes that the family reads.

    Raises:
        ModelError: the architecture is something else; the text says what.
    """
    architecture, task = architecture_of(values), task_of(values, model_type)
    record = recorded(model_type)
    tied = values.get("tie_word_embeddings", record.defaults.get("tie_word_embeddings"))
    if not architecture or task in tasks or (task == "headless" and tied):
        return
    wanted = next(name for name, task in record.classes.items() if task in tasks)
    fix = f"if the files hold lm_head.weight, write {wanted} there" if task == "headless" else ""
    raise ModelError(
        "model architecture",
        found=_described(architecture),
        expected=wanted,
        fix=fix,
    )


def read_architectures() -> list[str]:
    """All architectures that are read, by name."""
    return sorted(
        name
        for kind in set(recorded_classes().values())
        for name, task in recorded(kind).classes.items()
        if task == _read_task(kind)
    )


def _read_task(model_type: str) -> str:
    """Task of a type's classes that are read: of encoders, which fill in masked tokens or write
    none, the one without a head."""
    tasks = recorded(model_type).classes.values()
    if "speech" in tasks:
        return "speech"
    return "headless" if "masked" in tasks or "causal" not in tasks else "causal"


def _types() -> Mapping[str, str]:
    return {name.lower(): kind for name, kind in recorded_classes().items()}


def _described(architecture: str) -> str:
    """A name, with what it is by its end."""
    ends = [end for end in HEADS if architecture.endswith(end)]
    what = HEADS[max(ends, key=len)] if ends else ""
    return f"{architecture}, {what}" if what else architecture


def nearest_type(values: Mapping[str, Any]) -> str:
    """The model type that is read whose config has most in common with a ``config.json``; empty
    where it holds fewer than :data:`LEAST_KEYS` keys that tell models apart.

    The measure is Dice's, twice the weight of common keys over the weight of both sets; a key that
    few types have weighs more, by the reciprocal of their number. Null and empty values count as
    absent.

    >>> keys = {"kv_lora_rank": 512, "q_lora_rank": 1536, "n_routed_experts": 256, "n_group": 8}
    >>> nearest_type(keys | {"model_type": "mine", "topk_group": 4, "v_head_dim": 128})
    'deepseek_v3'
    """
    weights, own = _key_weights(), _own_keys()
    found = {key for key, value in values.items() if weights.get(key) and value not in (None, [])}
    if len(found) < LEAST_KEYS:
        return ""

    def weight(keys: Iterable[str]) -> float:
        return sum((weights[key] for key in keys), 0.0)

    def likeness(kind: str) -> float:
        return 2 * weight(found & own[kind]) / (weight(found) + weight(own[kind]))

    return max(sorted(own), key=likeness)


LEAST_KEYS = 5
"""Keys by which a type can be told to be near."""


@functools.cache
def _own_keys() -> Mapping[str, frozenset[str]]:
    """The keys that tell apart each type that is read."""
    of_diffusers = {kind for name, kind in recorded_classes().items() if name == kind}
    kinds = sorted(set(recorded_classes().values()) - of_diffusers)
    return {
        kind: frozenset(key for key in recorded(kind).defaults if not is_harmless(key))
        for kind in kinds
    }


@functools.cache
def _key_weights() -> Mapping[str, float]:
    """One over the number of types that have a key."""
    counts = collections.Counter(key for keys in _own_keys().values() for key in keys)
    return {key: 1 / count for key, count in counts.items()}


ADDING = "docs/how-to/extend.md, 'A model family', tells how to add one"


def _unknown(name: str, values: Mapping[str, Any]) -> ModelError:
    """The error for an architecture or model type that is not read; it names the nearest family, by
    its name or else by its config."""
    known, stem = read_architectures(), _stem(name)
    same = [one for one in known if _stem(one) == stem]
    fix = ""
    if stem in RELATIVES:
        family, difference = RELATIVES[stem]
        fix = f"nearest is {family}, but {difference}; {ADDING}"
    elif same and _described(name) == name:
        fix = f"did you mean {same[0]}?"
    elif same:
        fix = f"of its kind, {same[0]} is read"
    elif near := nearest_type(values):
        fix = f"by the keys of its config, nearest is {near}; {ADDING}"
    elif name:
        fix = ADDING
    return ModelError(
        "model architecture",
        found=_described(name) or "none",
        expected="one of " + ", ".join(known),
        fix=fix,
    )


def _stem(name: str) -> str:
    """Stem that an architecture's name shares with its model type.

    >>> _stem("Qwen2MoeForCausalLM"), _stem("qwen2_moe"), _stem("GPT2LMHeadModel")
    ('qwen2moe', 'qwen2moe', 'gpt2')
    """
    return _HEAD.sub("", name).replace("_", "").replace("-", "").replace(".", "").lower()
