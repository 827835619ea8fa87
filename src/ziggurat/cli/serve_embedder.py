"""The part of ``ziggurat serve`` that turns texts into vectors."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ziggurat.core.errors import ConfigError


def is_encoder(model: str) -> bool:
    """Whether what is to be served embeds texts instead of writing them."""
    from ziggurat.models.loading import pretrained_encoder

    return Path(model).is_dir() and pretrained_encoder.is_encoder(Path(model))


def opened(path: str | None, name: str, alone: bool, precision: Any) -> Any:
    """The encoder at ``path`` as a part of the server; None if none was asked for.

    Args:
        path: a Hugging Face directory, or a checkpoint of one.
        name: what requests call it, if it is served alone; else that is its directory's name.
        alone: whether no language model is served.
        precision: parameter and compute types.

    Raises:
        ConfigError: what is there is no encoder.
    """
    if path is None:
        return None
    if not is_encoder(path):
        raise ConfigError(
            "--embedder", found=path, expected="a directory of an encoder of texts, such as BERT"
        )
    from ziggurat.models import TextEmbedder
    from ziggurat.models.loading import pretrained_encoder
    from ziggurat.models.text_scorer import CrossEncoder, VectorScorer
    from ziggurat.serve.composition import Embedder

    encoder = pretrained_encoder.load(path, precision=precision)
    shown = (name if alone else "") or encoder.name
    if encoder.model.labels == 1:
        return Embedder(shown, None, encoder.tokenizer, CrossEncoder(encoder))
    embedder = TextEmbedder(encoder)
    return Embedder(shown, embedder, encoder.tokenizer, VectorScorer(embedder))


def warm_up(encoder: Any, say: Callable[[str], None]) -> None:
    """Compile an encoder's programs, if there is one, and tell how long it took."""
    if encoder is None:
        return
    embedder, scorer, begun = encoder.embedder, encoder.scorer, time.monotonic()
    if embedder is None:
        say(f"{encoder.name}: scores pairs of texts of {scorer.max_length} tokens together")
        scorer.warm_up()
    else:
        say(f"{encoder.name}: {embedder.dimension} numbers a text of {embedder.max_length} tokens")
        embedder.warm_up()
    say(f"compiled its programs in {time.monotonic() - begun:.1f} s")
