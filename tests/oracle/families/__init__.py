"""What transformers computes for each family of models: tables of cases and their stored logits.

A family is a file here with a ``TABLE``, and an ``.npz`` beside it. Weights are drawn from a
counter-based generator keyed by (case, tensor name), so that only the logits, the tensors' names
and shapes, and ``config.json`` are stored. A case's name is ``family/case``. Needs torch and
transformers for :func:`recompute` only::

    python -m tests.oracle.families --write qwen    # recompute and store
    python -m tests.oracle.families --check         # recompute and compare with what is stored
    python -m tests.oracle.families --table         # our differences from what is stored
"""

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import json
import pkgutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tests.oracle.families.table import TOKENS, VOCABULARY, Table
from tests.oracle.processors import APART

__all__ = [
    "CASES",
    "ENCODER_CASES",
    "FAMILIES",
    "TOKENS",
    "VOCABULARY",
    "Stored",
    "Table",
    "Tensors",
]


@functools.cache
def table(family: str) -> Table:
    """A family's cases."""
    return importlib.import_module(f"{__name__}.{family}").TABLE


FAMILIES = tuple(sorted({m.name for m in pkgutil.iter_modules(__path__)} - {"table", "__main__"}))
"""Names of the files here that hold cases."""
CASES = tuple(
    f"{family}/{case}"
    for family in FAMILIES
    for case in table(family).cases
    if not table(family).encoder
)
"""Names of all cases of language models."""
ENCODER_CASES = tuple(
    f"{family}/{case}"
    for family in FAMILIES
    for case in table(family).cases
    if table(family).encoder
)
"""Names of all cases of encoders."""
PADDED = 15
"""Tokens of the second row of an encoder's input; the rest is padding."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """What transformers said of one case."""

    config: dict[str, Any]
    """``config.json`` as ``save_pretrained`` writes it."""
    shapes: dict[str, tuple[int, ...]]
    """Tensors by name as safetensors files hold them."""
    logits: np.ndarray
    """``[1, TOKENS, v]``, float32; of an encoder ``[2, TOKENS + 1, d]``, see :class:`Table`."""
    parameters: int
    """``num_parameters()``."""


class Tensors(dict):
    """Tensors by name, as ``import_weights`` reads them."""

    def read(self, name: str) -> np.ndarray:
        return self[name]

    def dtype_of(self, name: str) -> np.dtype:
        return self[name].dtype


def tokens(case: str) -> np.ndarray:
    """The input ids of a case, ``[1, TOKENS]``."""
    return _generator(case, "tokens").integers(0, VOCABULARY, (1, TOKENS)).astype(np.int32)


def encoder_inputs(case: str) -> dict[str, np.ndarray]:
    """What an encoder's case is run on, by transformers' names of arguments."""
    draw = _generator(case, "tokens")
    shape = 2, TOKENS
    mask = np.arange(TOKENS)[None] < np.array([[TOKENS], [PADDED]])
    of = table(case.partition("/")[0])
    inputs = {
        "input_ids": draw.integers(0, VOCABULARY, shape).astype(np.int32),
        "attention_mask": mask.astype(np.int32),
        "token_type_ids": draw.integers(0, 2, shape).astype(np.int32),
    }
    switches = {**of.base, **of.cases[case.partition("/")[2]]}
    if not of.token_types or switches.get("type_vocab_size") == 0:
        del inputs["token_type_ids"]
    if not of.masked:
        inputs["attention_mask"][:] = 1
    if of.image is not None:
        inputs = inputs if of.texts else {}
        changed = of.cases[case.partition("/")[2]].get("image", of.image)
        inputs["pixel_values"] = draw.normal(size=(2, 3, *changed)).astype(np.float32)
    return inputs


def encoder_outputs(
    mask: Any, states: Any = None, pooled: Any = None, logits: Any = None
) -> np.ndarray:
    """What is stored of an encoder's outputs."""
    if logits is not None:
        found = np.asarray(logits)
        if mask is not None and found.shape == np.shape(mask):  # one logit of each token
            found = found[..., None]
        mask = np.ones(found.shape[:2], np.float32) if mask is None else mask
        return found * mask[..., None] if found.ndim == 3 else found
    states = np.asarray(states)
    parts = [states if mask is None else states * mask[..., None]]
    if pooled is not None:
        missing = states.shape[2] - pooled.shape[1]  # a pooler may be narrower than the states
        parts.append(np.pad(np.asarray(pooled), ((0, 0), (0, missing)))[:, None])
    return np.concatenate(parts, axis=1).astype(np.float32)


def weight(case: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor: matrices of the config's scale, norms about one, biases about zero."""
    cases = table(case.partition("/")[0])
    scale = cases.scale or cases.base["initializer_range"]
    return drawn(case, name, shape, scale, cases.norms_about)


def drawn(
    key: str, name: str, shape: tuple[int, ...], scale: float = 0.2, norms_about: float = 1.0
) -> np.ndarray:
    """One tensor of a model that is in no table."""
    centred = np.asarray(2 * _generator(key, name).random(shape) - 1, np.float32)
    if len(shape) > 1:
        return centred * np.float32(scale * 3**0.5)
    about = norms_about if name.endswith(".weight") else 0.0
    return np.asarray(centred * np.float32(0.3) + np.float32(about))


def weights(case: str, shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """All tensors of a case."""
    return Tensors({name: weight(case, name, shape) for name, shape in shapes.items()})


@functools.cache
def stored(family: str) -> dict[str, Stored]:
    """Every stored case of a family."""
    with np.load(_file(family)) as file:
        cases = json.loads(file["description"].tobytes())["cases"]
        return {
            name: Stored(
                config=entry["config"],
                shapes={tensor: tuple(shape) for tensor, shape in entry["shapes"].items()},
                logits=file[name],
                parameters=entry["parameters"],
            )
            for name, entry in cases.items()
        }


def load(case: str) -> Stored:
    """One stored case."""
    family, _, name = case.partition("/")
    return stored(family)[name]


def torch_model(case: str, directory: Path | None = None) -> Any:
    """The transformers model of a case, with the case's weights.

    They reach it as a published model's do, from a directory: where transformers keeps tensors in
    another form than files do (fused experts), its own conversion is part of what is compared.
    """
    import torch
    import transformers
    from safetensors.numpy import load_file, save_file

    family, _, name = case.partition("/")
    switches = dict(table(family).base) | dict(table(family).cases[name])
    architecture = switches.pop("architecture", table(family).architecture)
    switches.pop("image", None)
    transformers.utils.logging.disable_progress_bar()
    cls = getattr(transformers, architecture)
    config = cls.config_class(**switches)
    config.architectures = [architecture]
    with tempfile.TemporaryDirectory() as made:
        path = directory or Path(made)
        cls(config).save_pretrained(path)
        shapes = {k: v.shape for k, v in load_file(path / "model.safetensors").items()}
        save_file(weights(case, shapes), path / "model.safetensors", metadata={"format": "pt"})
        model, report = cls.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), report
    return model.eval()


def recompute(case: str) -> Stored:
    """Run one case with transformers."""
    import torch
    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory() as directory:
        model = torch_model(case, Path(directory))
        config = json.loads((Path(directory) / "config.json").read_text())
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in load_file(Path(directory) / "model.safetensors").items()
        }
    with torch.no_grad():
        if table(case.partition("/")[0]).encoder:
            inputs = encoder_inputs(case)
            given = {key: torch.from_numpy(x) for key, x in inputs.items()}
            given = {k: x if k == "pixel_values" else x.long() for k, x in given.items()}
            sizes = getattr(model.config, "image_size", None)
            sizes = [sizes] * 2 if isinstance(sizes, int) else sizes
            if sizes is not None and list(sizes) != list(inputs["pixel_values"].shape[2:]):
                given |= interpolated(model)
            found = model(**given)
            if "text_embeds" in found:
                parts = (found.text_embeds, found.image_embeds, found.logits_per_text)
                logits = np.concatenate([part.numpy() for part in parts], axis=1)
            else:
                logits = encoder_outputs(
                    inputs.get("attention_mask"),
                    found.get("last_hidden_state"),
                    found.get("pooler_output"),
                    found.get("logits"),
                )
        else:
            logits = model(torch.from_numpy(tokens(case)).long()).logits.numpy()
    return Stored(config, shapes, logits, model.num_parameters())


def interpolated(model: Any) -> dict[str, bool]:
    """The switch by which a model of transformers takes images of another size, if it has one."""
    import inspect

    name = "interpolate_pos_encoding"
    return {name: True} if name in inspect.signature(type(model).forward).parameters else {}


def write(family: str) -> None:
    """Recompute a family's cases and store the results."""
    results = {case: recompute(f"{family}/{case}") for case in table(family).cases}
    described = {
        case: {"config": r.config, "shapes": r.shapes, "parameters": r.parameters}
        for case, r in results.items()
    }
    text = json.dumps({"versions": _versions(), "cases": described}, indent=1)
    logits: dict[str, Any] = {case: r.logits for case, r in results.items()}
    np.savez_compressed(_file(family), description=np.frombuffer(text.encode(), np.uint8), **logits)


def compare(case: str, found: Stored, stored: Stored) -> None:
    """Fail, naming the case, where a recomputed result differs from the stored one by more than
    processors do."""
    np.testing.assert_allclose(found.logits, stored.logits, atol=APART, rtol=0, err_msg=case)
    assert found.shapes == stored.shapes, case
    assert found.parameters == stored.parameters, case
    version = {"transformers_version"}
    for key in (found.config.keys() | stored.config.keys()) - version:
        assert found.config.get(key) == stored.config.get(key), f"{case}: {key}"


def _file(family: str) -> Path:
    return Path(__file__).with_name(f"{family}.npz")


def _generator(case: str, name: str) -> np.random.Generator:
    digest = hashlib.blake2b(f"{case}/{name}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")}
