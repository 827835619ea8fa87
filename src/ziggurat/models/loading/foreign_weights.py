"""Weights of other programs' checkpoints for a family's model.

Wrappers of names are found and taken off. Names may be Hugging Face's or TorchTitan's; checkpoints
of MaxText, Megatron-core and nanoGPT are read through :mod:`.framework_layouts`.

A training checkpoint holds a model's tensors under a prefix (``model.``, ``module.``,
``state_dict.``), with segments of wrappers in between (``_orig_mod``), beside an optimizer's.

>>> table = {"Hugging Face": (WeightName("up", "layers.{layer}.up"), WeightName("norm", "norm"))}
>>> present = ["model.layers.0.up", "model.layers.1.up", "model.norm", "optimizer.state.0"]
>>> naming = find_naming(present, table, layers=2)
>>> naming.prefix, naming.left_out
('model.', 1)
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ziggurat.core.errors import CheckpointError, ModelError, did_you_mean
from ziggurat.data import HuggingFaceTokenizer
from ziggurat.formats.tensors import Tensors
from ziggurat.mesh import Layout
from ziggurat.models.conversion import token_ids
from ziggurat.models.conversion.dropped_tensors import check_dropped, stored_head
from ziggurat.models.conversion.weight_names import TensorSource, WeightName
from ziggurat.models.families.family import Family
from ziggurat.models.families.llama.gguf import gguf_names
from ziggurat.models.language_model import LanguageModel
from ziggurat.models.loading import hf_directory, pretrained, weight_reading
from ziggurat.models.loading.framework_layouts import published_view
from ziggurat.nn.precision import Precision

WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Segments that PyTorch puts between names when it compiles, shards or checkpoints a module."""
TRAINING = ("optimizer", "optim", "lr_scheduler", "train_state", "dataloader", "rng_state", "loops")
"""How the first segment of a name begins where a trainer keeps its own state."""
_ALONE = ", one matrix for both ends"
_BUFFERS = ("rotary_emb.inv_freq", "freqs_cis")
_TORCHTITAN = {
    "token_embd": "tok_embeddings",
    "output_norm": "norm",
    "output": "output",
    "attn_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
}


@dataclasses.dataclass(frozen=True)
class Naming:
    """Table of names under which a checkpoint stores a model's tensors."""

    style: str
    """Whose names they are, for people."""
    names: tuple[WeightName, ...]
    prefix: str
    """Prefix of each name."""
    left_out: int
    """Tensors that are not under the prefix: an optimizer's, an averaged copy's."""


def load(
    tensors: TensorSource,
    directory: Path,
    *,
    prefix: str | None = None,
    source: str = "",
    precision: Precision | None = None,
    layout: Layout | None = None,
    in_files: bool = False,
) -> tuple[pretrained.Pretrained, Naming]:
    """Read a model's weights from any source of tensors.

    Args:
        tensors: such as ``ziggurat.checkpoint.containers.open`` gives.
        directory: holds ``config.json`` and the tokenizer's files.
        prefix: what to take off each name; default: found out.
        source: where the tensors are from, for people.
        precision: parameter and compute types; default float32.
        layout: where parameters go; default the first device.
        in_files: leave the weights in their files, see :func:`pretrained.load`.

    Raises:
        ModelError: no ``config.json``, or an unknown architecture or switch.
        CheckpointError: a tensor is missing, left over, or of another shape; it is named.
    """
    if not (directory / "config.json").is_file():
        raise ModelError(
            f"config of {source or 'the weights'}",
            found=f"no config.json in {directory}",
            expected="a directory with config.json and tokenizer.json",
        )
    family, model = pretrained.hf_model(directory, precision)
    tokenizer = HuggingFaceTokenizer.load(directory)
    bare = _unwrapped(tensors)
    layers = model.decoder.n_layers
    framework = None
    if isinstance(tensors, Tensors):
        lazy = {name: tensors[home] for name, home in bare.items()}
        framework = published_view(lazy, family, model, prefix)
    if framework is not None:
        tensors, prefix = framework, ""
        bare = dict(zip(framework, framework))
    tables = styles(family, model.config)
    naming = find_naming(bare, tables | _heads_alone(family, model.config), layers, prefix)
    view = _View(tensors, bare, naming, _expected(naming.names, layers))
    head = stored_head(model.config, lambda config: _table(family, config, naming), view)
    if head.config != model.config:
        model = LanguageModel.build(head.config, precision)
    check_dropped(view.buffers, tensors, model.decoder)
    params = weight_reading.read_weights(family, model, head, view, layout, in_files=in_files)
    token_ids.warn_of_larger(tokenizer, model.config.vocab_size, directory)
    name = Path(source).stem or directory.name
    ids = token_ids.stated(hf_directory.hf_family(directory)[1])
    made = pretrained.Pretrained(model.typed_as(params), params, tokenizer, name, source, ids)
    if framework is not None:
        names = (framework.framework, naming.names, framework.prefix, framework.left_out)
        naming = Naming(*names)
    return made, naming


def styles(family: Family, config: Any) -> dict[str, tuple[WeightName, ...]]:
    """Tables of names that a family's weights may have, the likeliest first."""
    published = tuple(family.hf_names(config))
    base = tuple(
        dataclasses.replace(name, theirs=name.theirs.removeprefix(family.base))
        for name in published
    )
    tables = {"Hugging Face": published, "Hugging Face, without the head's wrapper": base}
    if family.name == "llama":
        tables["TorchTitan"] = tuple(torchtitan_names(config))
    return tables


def _heads_alone(family: Family, config: Any) -> dict[str, tuple[WeightName, ...]]:
    """Tables for tied embeddings that are stored under the output matrix's name alone."""
    if not config.tie_embeddings:
        return {}
    found = {}
    for style, names in styles(family, dataclasses.replace(config, tie_embeddings=False)).items():
        head = next(name.theirs for name in names if name.ours == "unembedding")
        found[f"{style}{_ALONE}"] = tuple(
            dataclasses.replace(name, theirs=head) if name.ours == "embedding.table" else name
            for name in names
            if name.ours != "unembedding"
        )
    return found


def _table(family: Family, config: Any, naming: Naming) -> tuple[WeightName, ...]:
    """The table of a naming's style for a config."""
    return styles(family, config)[naming.style.removesuffix(_ALONE)]


def torchtitan_names(config: Any) -> list[WeightName]:
    """Llama's names in TorchTitan and in Meta's own files.

    Query and key rows are in interleaved rotary order there, as in GGUF, whose table this renames.
    """
    names = []
    for name in gguf_names(config):
        stem, _, suffix = name.theirs.rpartition(".")
        key = stem.removeprefix("blk.{layer}.")
        layer = "layers.{layer}." if key != stem else ""
        theirs = f"{layer}{_TORCHTITAN[key]}.{suffix}"
        names.append(dataclasses.replace(name, theirs=theirs))
    return names


def find_naming(
    present: Iterable[str],
    tables: dict[str, tuple[WeightName, ...]],
    layers: int,
    prefix: str | None = None,
) -> Naming:
    """Find the table and prefix under which all of a model's tensors are present.

    Args:
        present: names in the checkpoint, without wrappers.
        tables: by style, as :func:`styles` gives them.
        layers: number of stacked layers.
        prefix: the only one to try.

    Raises:
        CheckpointError: no tensor has a name of any table, or several prefixes hold all of them.
    """
    present = list(present)
    best, most = ("", ""), 0
    for style, names in tables.items():
        expected = _expected(names, layers)
        counts = collections.Counter(_prefixes(present, expected))
        if prefix is not None:
            counts = collections.Counter({prefix: counts[prefix]})
        whole = sorted(found for found, count in counts.items() if count == len(expected))
        if len(whole) > 1 and "" not in whole:
            raise CheckpointError(
                "tensor names",
                found="the whole model under " + " and ".join(whole),
                expected="one prefix",
                fix=f"name it, e.g. --prefix-strip {whole[0]}",
            )
        if whole:
            best, most = (style, whole[0]), 1
            break
        nearest = max(counts, key=lambda found: counts[found], default="")
        if counts[nearest] > most:
            best, most = (style, nearest), counts[nearest]
    if most:
        style, found = best
        left_out = sum(not _belongs(name, found) for name in present)
        return Naming(style, tables[style], found, left_out)
    wanted = [name.all_theirs(layers)[0] for name in next(iter(tables.values()))]
    first = min(present, default="")
    raise CheckpointError(
        f"tensor {first}" if first else "tensors",
        found="a name that this architecture has no place for" if first else "none",
        expected=f"names such as {prefix or ''}{wanted[0]}",
        fix=did_you_mean(first, wanted) or "check the config, the item and the prefix",
    )


class _View:
    """The tensors under a naming's prefix, by the names that its table has."""

    def __init__(
        self, tensors: TensorSource, bare: dict[str, str], naming: Naming, expected: set[str]
    ):
        self._tensors = tensors
        self._homes = {
            name.removeprefix(naming.prefix): home
            for name, home in bare.items()
            if _belongs(name, naming.prefix)
        }
        left_out = [n for n in self._homes if n not in expected and n.endswith(_BUFFERS)]
        self.buffers = [self._homes.pop(name) for name in left_out]
        """Tensors that no parameter is read from, by their names in the checkpoint."""

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def dtype_of(self, name: str) -> np.dtype:
        return self._tensors.dtype_of(self._homes[name])

    def read(self, name: str) -> np.ndarray:
        return self._tensors.read(self._homes[name])


def _belongs(name: str, prefix: str) -> bool:
    if prefix:
        return name.startswith(prefix)
    return not name.startswith(TRAINING)


def _expected(names: Iterable[WeightName], layers: int) -> set[str]:
    return {theirs for name in names for theirs in name.all_theirs(layers)}


def _prefixes(present: Iterable[str], expected: set[str]) -> Iterator[str]:
    """For each tensor whose name ends as one that is expected, what stands before."""
    for name in present:
        start = 0
        while start >= 0:
            if name[start:] in expected:
                yield name[:start]
            start = name.find(".", start) + 1 or -1


def _unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Names without wrappers' segments, and the names as they are."""
    bare: dict[str, str] = {}
    for name in names:
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if short in bare:
            raise CheckpointError(
                f"tensor {name}",
                found=f"also {bare[short]}",
                expected="one of them",
                fix="they differ by a wrapper's name alone; convert with --select first",
            )
        bare[short] = name
    return bare
