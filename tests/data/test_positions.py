"""Positions are bounded, whatever the length of the documents, the packing and the mode."""

import dataclasses

import numpy as np
import pytest

from ziggurat.data.config import DataConfig
from ziggurat.data.opening import build
from ziggurat.data.packing import BestFit, Concat, FirstFit, Single
from ziggurat.data.pieces import POSITION_LIMIT, Pieces, assemble
from ziggurat.data.sources import TextFiles
from ziggurat.data.tokenizers import byte_level

ROW, LIMIT = 16, 40
PACKINGS = [Concat(), FirstFit(), BestFit(), Single()]


def bounded(config: DataConfig, cache) -> dict[str, np.ndarray]:
    """All rows of three steps."""
    data = build(config, byte_level(), 0, cache)
    batches = [data.batch(step) for step in range(3)]
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


@pytest.mark.parametrize("tokenize", ["ahead", "stream"])
@pytest.mark.parametrize("packing", PACKINGS, ids=lambda p: p.kind)
def test_positions_stay_below_the_limit(tmp_path, packing, tokenize):
    """Documents of 5 to 1,000 tokens: within the limit positions are the document's, beyond it a
    piece counts from its own start; they rise by one within a piece, in both modes."""
    for number, length in enumerate((5, 23, 39, 41, 200, 1000)):
        (tmp_path / f"{number}.txt").write_text("".join(chr(97 + i % 26) for i in range(length)))
    config = DataConfig(
        sources=(TextFiles(path=str(tmp_path), glob="*.txt"),),
        sequence_length=ROW,
        batch_size=8,
        packing=packing,
        tokenize=tokenize,
        position_limit=LIMIT,
    )
    batch = bounded(config, tmp_path / "cache")
    row = bounded(dataclasses.replace(config, positions="row"), tmp_path / "cache")
    assert batch["positions"].max() < LIMIT
    assert row["positions"].max() < ROW
    assert (batch["tokens"] == row["tokens"]).all()
    inside = batch["segment_ids"][:, 1:] == batch["segment_ids"][:, :-1]
    inside &= batch["segment_ids"][:, 1:] > 0
    for places in (batch["positions"], row["positions"]):
        assert (np.diff(places)[inside] == 1).all()
    if packing.kind != "none":  # which never sees more of a document than its first row
        assert batch["positions"].max() >= ROW


def test_a_piece_within_the_limit_keeps_its_place():
    """The border itself: the last position allowed, and one more."""
    tokens = np.zeros(100, np.uint16)
    for start, first in ((24, 24), (25, 0), (90, 0)):
        one = np.array([0])
        length = np.array([min(ROW, 100 - start)])
        pieces = Pieces(one, one, one, np.array([start]), length)
        batch = assemble(
            pieces, tokens, one, np.array([100]), rows=1, row_tokens=ROW, position_limit=LIMIT
        )
        assert batch["positions"][0, 0] == first


def test_without_a_model_positions_are_whole_in_float32():
    assert POSITION_LIMIT < 1 << 24
    tokens, one = np.zeros(4, np.uint16), np.array([0])
    far = np.array([90_000_000])
    pieces = Pieces(one, one, one, far, np.array([4]))
    batch = assemble(pieces, tokens, -far, far + 8, rows=1, row_tokens=4)
    assert batch["positions"].tolist() == [[0, 1, 2, 3]]
