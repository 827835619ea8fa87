"""Ids, positions and classes beyond a model's tables are refused before they reach the program,
which would read NaN or another row."""

import numpy as np
import pytest
from tests.train.tiny_families import families

from ziggurat.core.errors import DataError, ShapeError
from ziggurat.models import DiffusionModel, LanguageModel
from ziggurat.models.families.dit import DitConfig
from ziggurat.train.experiment import check_indices


def built(kind: str):
    config = families()[kind]
    return (DiffusionModel if isinstance(config, DitConfig) else LanguageModel).build(config)


@pytest.mark.parametrize("kind", families())
def test_every_table_of_every_family_has_a_limit(kind):
    """The last row is taken, one more and a negative number are not, also of a compared answer."""
    model = built(kind)
    expected = {"labels"} if kind == "dit" else {"tokens", "targets", "positions"}
    assert set(model.index_limits) == expected
    for name, limit in model.index_limits.items():
        rows = np.zeros((3, 4), np.int32)
        rows[1, 2] = limit - 1
        for array in (name, f"chosen_{name}"):
            check_indices({array: rows, "loss_mask": np.ones((3, 4), np.float32)}, {name: limit})
            for bad in (limit, -1):
                wrong = rows.copy()
                wrong[1, 3] = bad
                with pytest.raises(DataError, match=rf"batch: {array}: found {bad} in row 1"):
                    check_indices({array: wrong}, model.index_limits)


def test_limits_are_the_tables_rows():
    """Every embedding of a language model that is looked up by row is covered."""
    model = built("gpt2")
    assert model.index_limits["tokens"] == model.abstract["embedding"]["table"].shape[0]
    assert model.index_limits["positions"] == model.abstract["positions"]["table"].shape[0]
    images = built("dit")
    assert images.index_limits["labels"] == images.abstract["conditioning"]["classes"].shape[0]


def test_a_cache_holds_no_more_than_there_are_positions():
    model = built("gpt2")
    rows = model.config.max_sequence_length
    assert model.cache(1, rows).states[0].keys.shape[2] == rows
    with pytest.raises(ShapeError, match=f"found {rows + 1} slots; expected at most {rows}"):
        model.cache(1, rows + 1)
