"""The run file's ``[data]``: what a model is trained on."""

import dataclasses
from typing import Literal

from ziggurat.core import config
from ziggurat.core.errors import did_you_mean
from ziggurat.data.deduplicate import Deduplicate
from ziggurat.data.filter import Filter
from ziggurat.data.mixture import Mixture
from ziggurat.data.packing import Concat, Packing
from ziggurat.data.sources import Source


@config.node
class DataConfig:
    """Settings of text to train on."""

    kind: Literal["text"] = "text"
    sources: tuple[Source, ...]
    """Where documents come from, read in this order."""
    sequence_length: int
    """Tokens in a row."""
    batch_size: int
    """Rows in the global batch, over all hosts."""
    packing: Packing = dataclasses.field(default_factory=Concat)
    """How documents fill rows."""
    positions: Literal["document", "row"] = "document"
    """Positions count from the start of the document, as far as ``position_limit``; or start at 0
    with each of its pieces in a row."""
    position_limit: int | None = None
    """A piece of a document that reaches beyond this many tokens counts its positions from its own
    start. Default: the model's max_sequence_length, so that no position is one it cannot know."""
    shuffle: bool = True
    """A new keyed order of documents in every epoch; else the order of the sources."""
    epochs: int | None = None
    """Passes over the documents; without end if not given."""
    eval_fraction: float = 0.0
    """Share of documents held out for evaluation, chosen by a hash of their text."""
    filter: Filter = dataclasses.field(default_factory=Filter)
    """Which documents are left out."""
    dedup: Deduplicate | None = None
    """Leave out documents that were there before, over all sources."""
    mixture: Mixture | None = None
    """How much of a batch comes from which sources; one pool of all documents if not given."""
    tokenize: Literal["ahead", "stream"] = "ahead"
    """Tokenise all documents once into a store on disk; or while they are read, again each epoch,
    with no store and an order that is shuffled within windows."""
    stream_window: int = 4096
    """Documents that are shuffled and packed together when they are tokenised in a stream."""
    workers: int = 0
    """Processes that make batches; 0 makes them in a thread of this one, fast enough for local
    files."""
    prefetch: int = 4
    """Batches made ahead in each process; 0 makes each when it is asked for."""
    worker_patience_s: float = 60.0
    """Seconds for one batch after which a worker process counts as stuck and is replaced."""

    def __post_init__(self) -> None:
        config.require(len(self.sources) > 0, "sources", self.sources, "at least one source")
        contents = [getattr(source, "content", "text") for source in self.sources]
        fits, expected = "image_messages" not in contents, 'another, or data.kind = "image_text"'
        config.require(fits, "sources.content", "image_messages", expected)
        for key, least in (
            ("sequence_length", 2),
            ("batch_size", 1),
            ("stream_window", 1),
            ("workers", 0),
            ("prefetch", 0),
            ("position_limit", 1),
        ):
            value = getattr(self, key)
            if value is None:
                continue
            config.require(value >= least, key, value, f"at least {least}")
        config.require(self.epochs is None or self.epochs > 0, "epochs", self.epochs, "at least 1")
        held = self.eval_fraction
        config.require(0.0 <= held < 1.0, "eval_fraction", held, "0 or more and below 1")
        patience = self.worker_patience_s
        config.require(patience > 0, "worker_patience_s", patience, "a positive number")
        if self.mixture is not None:
            _check_mixture(self.mixture, [source.name for source in self.sources], self.epochs)
        if self.tokenize == "stream":
            _check_stream(self)

    @property
    def components(self) -> dict[str, tuple[Source, ...]]:
        """Sources grouped as a mixture weighs them: by name, or all together under ``""``."""
        if self.mixture is None:
            return {"": self.sources}
        names = dict.fromkeys(source.name for source in self.sources)
        return {name: tuple(s for s in self.sources if s.name == name) for name in names}


def _check_mixture(mixture: Mixture, names: list[str], epochs: int | None) -> None:
    config.require(all(names), "sources", names, "a name for each source, since there is a mixture")
    tables = {"weights": mixture.weights, "epochs": mixture.epochs}
    for number, stage in enumerate(mixture.schedule):
        tables[f"schedule.{number}.weights"] = stage.weights
    for table, given in tables.items():
        for name in given:
            hint = did_you_mean(name, names)
            expected = "the name of a source" + (f", {hint}" if hint else "")
            config.require(name in names, f"mixture.{table}", name, expected)
    weighed = [mixture.weights, *(stage.weights for stage in mixture.schedule)]
    for name in names:
        used = not mixture.weights or any(weights.get(name) for weights in weighed)
        config.require(used, "mixture.weights", f"no weight for {name}", "one in some stage")
    ends = mixture.stop == "all" or mixture.epochs or epochs is not None
    config.require(bool(ends), "mixture.stop", mixture.stop, "epochs given too, or nothing ends")


def _check_stream(data: DataConfig) -> None:
    sampled = any(source.max_documents is not None for source in data.sources)
    refused = {
        "mixture": data.mixture is not None,
        "dedup": data.dedup is not None,
        "eval_fraction": data.eval_fraction > 0.0,
        "workers": data.workers > 0,
        "sources.max_documents": sampled,
    }
    for key, given in refused.items():
        expected = 'nothing together with tokenize = "stream"; tokenize ahead, or leave it out'
        config.require(not given, key, "a value", expected)
