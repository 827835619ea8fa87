"""From a run file's ``[data]`` to open data and its tokenizer."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from ziggurat.core import atomic, config
from ziggurat.core.errors import DataError
from ziggurat.core.protocols import Tokenizer
from ziggurat.data import deduplicate, filter, store
from ziggurat.data import sources as sources_
from ziggurat.data.component import Component
from ziggurat.data.config import DataConfig
from ziggurat.data.dataset import PackedDataset
from ziggurat.data.filter import Split
from ziggurat.data.huggingface import HuggingFaceTokenizer
from ziggurat.data.store import Progress, TokenStore
from ziggurat.data.stream import StreamedDataset
from ziggurat.data.tokenizers import (
    ByteTokenizer,
    LoadTokenizer,
    TrainBpe,
    tokenizer,
)

Dataset = PackedDataset | StreamedDataset
"""Batches of a run, from a store or from a stream."""


def build(
    config: DataConfig,
    tokenizer: Tokenizer,
    seed: int,
    cache: Path,
    split: Split = "train",
    progress: Progress | None = None,
) -> Dataset:
    """Tokenise the data that is not in the cache yet, and open one split.

    With ``tokenize = "stream"`` nothing is tokenised yet, and nothing is kept in the cache.

    Args:
        config: the run file's ``[data]``.
        tokenizer: with eos and a ``digest``.
        seed: the run's seed; keys the order.
        cache: directory of token stores.
        split: ``train``, or ``eval`` for the documents held out, once each.
        progress: called with (documents, tokens) done while tokenising.

    Raises:
        ConfigError: a weight of the mixture is too small to be told from 0.
        DataError: no or damaged data; or no document falls into the split.
    """
    if split == "eval" and config.eval_fraction == 0.0:
        raise DataError(
            "evaluation data",
            found="eval_fraction 0",
            expected="a share",
            fix="set data.eval_fraction",
        )
    if config.tokenize == "stream":
        return StreamedDataset(config, tokenizer, seed)
    groups = config.components
    stores = [
        store.tokenise(group, tokenizer, cache, progress, config.workers)
        for group in groups.values()
    ]
    return open_split(config, dict(zip(groups, stores, strict=True)), seed, cache, split)


def open_split(
    config: DataConfig,
    stores: dict[str, TokenStore],
    seed: int,
    cache: Path,
    split: Split = "train",
) -> PackedDataset:
    """One split of the data in these stores, by component; see :func:`build`."""
    unique = [None] * len(stores)
    if config.dedup is not None:
        unique = deduplicate.keep(list(stores.values()), config.dedup, cache)
    components, documents = [], 0
    for (name, tokens), keep in zip(stores.items(), unique, strict=True):
        documents += len(tokens)
        chosen = filter.choose(
            tokens, config.filter, config.eval_fraction, split, keep, cache, name
        )
        if chosen is not None:
            components.append(Component(name, tokens, chosen, config, seed, cache))
    if not components:
        raise filter.nothing(split, documents, config.eval_fraction, {})
    return PackedDataset(config, components, seed, split)


def tokenizer_for(
    node: TrainBpe | LoadTokenizer | ByteTokenizer, data: DataConfig, cache: Path
) -> HuggingFaceTokenizer:
    """The tokenizer a run asks for; one trained on the run's documents is kept in the cache.

    Training reads the documents of the ``train`` split only, with no filter and no regard for
    duplicates. The kept one is used again as long as its settings and the sources' settings, names,
    sizes and times are the same.

    Raises:
        DataError: as :func:`ziggurat.data.tokenizers.tokenizer`.
    """
    if not isinstance(node, TrainBpe):
        return tokenizer(node)
    parts = [config.to_plain(node), data.eval_fraction, sources_.signature(data.sources)]
    key = hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()
    path = cache / f"tokenizer-{key}"
    if not path.exists():
        made = tokenizer(node, documents(data, "train"))
        try:
            with atomic.new_directory(path) as directory:
                made.save(directory)
        except OSError:
            if not path.exists():
                raise
    return HuggingFaceTokenizer.load(path)


def documents(config: DataConfig, split: Split | None = None) -> Iterator[str]:
    """Texts of the data for training a tokenizer; only those of ``split`` if given.

    >>> from ziggurat.data.sources import TextFiles
    >>> source = TextFiles(path="{stdlib}/json", glob="*.py")
    >>> len(list(documents(DataConfig(sources=(source,), sequence_length=8, batch_size=1))))
    5
    """
    for document in sources_.read([v for s in config.sources for v in sources_.views(s)]):
        if split is None or store.is_held_out(document, config.eval_fraction) == (split == "eval"):
            yield document.text
