"""A ``config.json`` read by transformers and by us: are the logits the same?

Weights are drawn by the names and shapes that transformers gives them, so that one config is one
model. We run operation by operation rather than compiled, since every config would be another
program; operations of equal shapes are compiled once for all configs.
"""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from tests.oracle import config_reads, families

from ziggurat.core.errors import ZigguratError
from ziggurat.models import EncoderModel, LanguageModel, TwoTowerModel, family_for_config
from ziggurat.models.conversion.architectures import model_type_of
from ziggurat.models.conversion.weight_names import import_weights, named_as_found

TOKENS, STEPS, VOCABULARY = 24, 3, 48
"""Tokens of an input, how many of them are decoded one by one, and how many there are."""
TOLERANCE = 1e-4
"""Largest difference of logits from transformers', for logits of order one."""


class Refused(str):
    """What our error says."""


def pixels(config: Any) -> np.ndarray:
    """Images of a config's size, ``[1, 3, h, w]``."""
    size = getattr(config, "vision_config", config).image_size
    shape = (size, size) if isinstance(size, int) else size
    return np.random.default_rng(6).normal(size=(1, 3, *shape)).astype(np.float32)


def tokens() -> np.ndarray:
    """The input of every comparison, ``[1, TOKENS]``."""
    return np.random.default_rng(5).integers(0, VOCABULARY, (1, TOKENS))


class Theirs:
    """transformers' model of a config.

    Args:
        values: the config, with its ``model_type``.
    """

    def __init__(self, values: Mapping[str, Any]):
        import torch
        import transformers

        config = their_config(values)
        family = family_for_config(values)
        self.encoder, self.inputs = family.encoder, family.inputs
        auto = transformers.AutoModel if self.encoder else transformers.AutoModelForCausalLM
        architecture = (values.get("architectures") or [""])[0]
        if "ForSequenceClassification" in architecture:  # with its head, under that one's names
            self.model = getattr(transformers, architecture)(config).float().eval()
        else:
            self.model = auto.from_config(config, dtype=torch.float32).eval()
        centred = ("gemma", "qwen3_next", "qwen3_5")
        about = 0.0 if values["model_type"].startswith(centred) else 1.0
        with torch.no_grad():
            for name, tensor in [*self.model.named_parameters(), *self._buffers()]:
                drawn = np.asarray(families.drawn("", name, tuple(tensor.shape), 0.3, about))
                tensor.copy_(torch.from_numpy(drawn))

    def _buffers(self) -> Iterator[tuple[str, Any]]:
        for name, tensor in self.model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                yield name, tensor

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """Logits ``[TOKENS, v]``, or an encoder's states."""
        import torch

        with torch.no_grad():
            if "image" in self.inputs:
                given = {"pixel_values": torch.from_numpy(pixels(self.model.config))}
                if "text" in self.inputs:
                    given["input_ids"] = torch.from_numpy(tokens())
                out = self.model(**given, return_dict=True)
                found = out["logits_per_text" if "text" in self.inputs else "last_hidden_state"]
            elif self.encoder:
                bare = self.model.base_model
                found = bare(torch.from_numpy(tokens()), return_dict=True).last_hidden_state
            else:
                found = self.model(
                    torch.from_numpy(tokens()), use_cache=False, return_dict=True
                ).logits
        return found[0].numpy()

    @functools.cached_property
    def decoded(self) -> np.ndarray:
        """Logits of the last tokens through transformers' cache, one by one."""
        import torch
        import transformers

        if self.encoder:
            return self.logits[-STEPS:]
        cache = transformers.DynamicCache(config=self.model.config)
        ids, found = torch.from_numpy(tokens()), []
        with torch.no_grad():
            for part in ids.split([TOKENS - STEPS, *[1] * STEPS], dim=1):
                out = self.model(part, past_key_values=cache, use_cache=True, return_dict=True)
                found.append(out.logits[0, -1].numpy())
        return np.stack(found[1:])

    @functools.cached_property
    def tensors(self) -> families.Tensors:
        """Weights as files hold them."""
        import transformers
        from safetensors.numpy import load_file

        transformers.utils.logging.disable_progress_bar()
        self.model.config.__dict__.pop("quantization_config", None)
        with tempfile.TemporaryDirectory() as directory:
            self.model.save_pretrained(directory)
            return families.Tensors(load_file(Path(directory) / "model.safetensors"))


def their_config(values: Mapping[str, Any]) -> Any:
    """transformers' config of a table, as from a file, in which no two tables are one."""
    import transformers

    kind = model_type_of(values)
    return transformers.CONFIG_MAPPING[kind].from_dict(
        json.loads(json.dumps({**values, "model_type": kind}))
    )


def parsed(values: Mapping[str, Any]) -> Any:
    """Our config, or why it is refused; any other error than ours is a fault."""
    try:
        return family_for_config(values).from_hf(values)
    except ZigguratError as error:
        return Refused(error)


def our_logits(values: Mapping[str, Any], theirs: Theirs) -> np.ndarray | Refused:
    """Our logits (an encoder's states) with their weights."""
    config = parsed(values)
    if isinstance(config, Refused):
        return config
    family = family_for_config(values)
    try:
        config = family.as_found(config, theirs.tensors) if family.encoder else config
        towers = TwoTowerModel if len(family.inputs) > 1 else EncoderModel
        model = (towers if family.encoder else LanguageModel).build(config)
        with plain_operations():
            params = import_weights(
                named_as_found(family.hf_names(config), theirs.tensors, family.base),
                theirs.tensors,
                model.abstract,
                layers=config.n_layers,
                ignored=lambda name: family.ignored(config, name) or name.endswith(family.buffers),
                place=lambda name, weight: jnp.asarray(weight.read()),
            )
            ids = jnp.asarray(tokens())
            if "image" in family.inputs:
                images = jnp.asarray(pixels(theirs.model.config))
                if len(family.inputs) > 1:
                    return np.asarray(model.logits(params, ids, None, images))[0]
                return np.asarray(model.hidden(params, images))[0]
            if family.encoder:
                return np.asarray(model.hidden(params, ids, jnp.ones_like(ids)))[0]
            return np.asarray(model.logits(params, ids))[0]
    except ZigguratError as error:
        return Refused(error)


@contextmanager
def plain_operations() -> Iterator[None]:
    """JAX operation by operation, none of them ours in C++: loops over layers and parts of a
    sequence are Python's, since a compiled loop would be another program for every config."""
    with ExitStack() as stack:
        for place, value in (
            ("ziggurat.kernels.cpu.operation.available", lambda *_, **__: False),
            ("jax.lax.scan", _scan),
            ("jax.lax.map", lambda f, xs: _scan(lambda _, x: (None, f(x)), None, xs)[1]),
        ):
            stack.enter_context(mock.patch(place, value))
        # its kernel for CPU is a loop whose length depends on values
        preferred = "ziggurat.kernels.grouped_matmul.PREFERRED"
        stack.enter_context(mock.patch.dict(preferred, {"cpu": "ragged"}))
        yield


def _scan(
    f: Callable, init: Any, xs: Any = None, length: int | None = None, **_: Any
) -> tuple[Any, Any]:
    """``jax.lax.scan`` as the loop that defines it."""
    count = jax.tree.leaves(xs)[0].shape[0] if length is None else length
    carry, outs = init, []
    for i in range(count):
        carry, out = f(carry, jax.tree.map(lambda leaf, i=i: leaf[i], xs))
        outs.append(out)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest value where that is above one; infinite where
    one is no number and the other is."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Our reading of a config against transformers'."""

    kind: str
    """``equal``, ``refused``, ``no model`` (transformers builds none), ``unread``: transformers
    does not read the key, and we are as without it; or ``fault``."""
    fault: str = ""


class Comparison:
    """Configs near one, each compared once.

    Args:
        base: the config from which others differ in a key.
    """

    def __init__(self, base: Mapping[str, Any]):
        self.base = dict(base)
        self._ours: dict[Any, np.ndarray | Refused] = {}
        with config_reads.recorded_reads() as self._read:
            self._theirs = Theirs(self.base)
            self._before = self._theirs.logits, self._theirs.decoded
        self._config = their_config(self.base)
        found = parsed(self.base)
        assert not isinstance(found, Refused), found
        fault = self._differs(self.base, self._theirs)
        assert not fault, fault

    def verdict(self, key: str, value: Any, must_accept_inert: bool, whole: bool = True) -> Verdict:
        """Our reading of one changed key.

        Args:
            key: the key.
            value: its value.
            must_accept_inert: refusing the value is wrong where transformers' result is the same.
            whole: run transformers' model also where it reads nothing that differs.
        """
        values = self.base | {key: value}
        found = parsed(values)
        try:
            unread = not whole and key != "architectures" and self._unread(values)
            theirs = self._theirs if unread else Theirs(values)
            logits, decoded = theirs.logits, theirs.decoded
        except Exception:  # whatever we say is no difference
            return Verdict("no model")
        if isinstance(found, Refused):
            if "\n" in found:
                return Verdict("fault", f"refused in more than a line: {found}")
            moves = max(map(difference, (logits, decoded), self._before))
            if must_accept_inert and moves < 1e-6:
                fault = f"refused though transformers' logits do not move: {found}"
                return Verdict("fault", fault)
            return Verdict("refused")
        if fault := self._differs(values, theirs):
            return Verdict("fault", fault)
        return Verdict("unread" if unread else "equal")

    def _unread(self, values: Mapping[str, Any]) -> bool:
        return not config_reads.changed(their_config(values), self._config) & self._read

    def _differs(self, values: Mapping[str, Any], theirs: Theirs) -> str:
        config = json.dumps(values["model_type"]) + repr(parsed(values))
        if config not in self._ours:
            self._ours[config] = our_logits(values, theirs)
        ours = self._ours[config]
        if isinstance(ours, Refused):  # by the weights
            return ""
        gap = difference(ours, theirs.logits)
        return f"logits differ by {gap:.2g}" if gap > TOLERANCE else ""


comparison = functools.cache(lambda text: Comparison(json.loads(text)))
