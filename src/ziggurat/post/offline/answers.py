"""Data and batch shapes of objectives over whole answers."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from ziggurat.data import AnswerDataset, HuggingFaceTokenizer, build_answers
from ziggurat.data.answers import ARRAYS, Kind
from ziggurat.mesh import Layout
from ziggurat.train.config import RunConfig
from ziggurat.train.objectives import text

SIDES = ("chosen_", "rejected_")
"""Prefixes of the arrays of a pair's answers."""
OTHER = "other_"
"""Prefix of the arrays of another row's answer."""


def load_answers(
    run: RunConfig, tokenizer: HuggingFaceTokenizer, kind: Kind
) -> tuple[AnswerDataset, AnswerDataset | None]:
    """Open training batches of answers, and held-out ones if the run holds any out.

    Raises:
        ConfigError, DataError: as :func:`ziggurat.data.build_answers`.
    """
    config, cache = text.documents(run), run.output / "cache"

    def make() -> tuple[AnswerDataset, AnswerDataset | None]:
        training = build_answers(config, tokenizer, run.seed, cache, kind)
        if not config.eval_fraction:
            return training, None
        return training, build_answers(config, tokenizer, run.seed, cache, kind, "eval")

    return text.first_alone("data", make)


def pair_struct(layout: Layout, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a batch of pairs."""
    one = text.batch_struct(layout, batch, length)
    return {side + name: one[name] for side in SIDES for name in ARRAYS} | {
        "margin": _column(layout, batch)
    }


def labelled_struct(layout: Layout, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and shardings of a batch of labelled answers."""
    one = text.batch_struct(layout, batch, length)
    others = {OTHER + name: one[name] for name in ARRAYS}
    return one | others | {"desirable": _column(layout, batch)}


def _column(layout: Layout, batch: int) -> jax.ShapeDtypeStruct:
    """One number a row."""
    sharding = layout.sharding(("batch", None))
    return jax.ShapeDtypeStruct((batch, 1), jnp.float32, sharding=sharding)


STRUCTS: Mapping[Kind, Callable[[Layout, int, int], dict[str, jax.ShapeDtypeStruct]]] = {
    "preference": pair_struct,
    "labelled": labelled_struct,
}
"""Batches by how their answers are judged."""
