"""Which parameters are decayed and which are orthogonalised."""

import pytest
from tests.optim.stacked_parameters import AXES

from ziggurat.core.errors import ConfigError
from ziggurat.optim import AdamW, Muon, Sgd, build, groups


def rows(config, axes=AXES):
    return {row.name: row for row in build(config, total_steps=10, axes=axes).describe()}


def test_default_decay():
    table = rows(AdamW(lr=1e-3))
    assert {name for name, row in table.items() if row.decayed} == {
        "blocks.attention.output.kernel",
        "blocks.attention.query.kernel",
        "blocks.mlp.up.kernel",
        "blocks.moe.down.kernel",
        "blocks.moe.router.kernel",
        "head.kernel",
    }
    assert {row.group for row in table.values()} == {"adamw"}
    assert table["embed.table"].axes == ("vocab", "embed")


def test_no_decay_patterns_replace_the_default():
    table = rows(AdamW(lr=1e-3, no_decay=("*.router.*",)))
    assert table["embed.table"].decayed
    assert not table["blocks.moe.router.kernel"].decayed
    assert not table["blocks.norm.scale"].decayed, "a stack of vectors is never decayed"


def test_muon_takes_matrices_without_vocabulary():
    table = rows(Muon(lr=1e-3))
    assert {name for name, row in table.items() if row.group == "muon"} == {
        "blocks.attention.output.kernel",
        "blocks.attention.query.kernel",
        "blocks.mlp.up.kernel",
        "blocks.moe.down.kernel",
    }
    assert {row.group for row in table.values()} == {"muon", "adamw"}
    wider = rows(Muon(lr=1e-3, adam_patterns=("*.down.*",)))
    assert wider["blocks.moe.down.kernel"].group == "adamw"
    assert wider["blocks.moe.router.kernel"].group == "muon"


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (
            AdamW(lr=1e-3, no_decay=("*norm*", "*rooter*")),
            "optimizer no_decay: found '\\*rooter\\*', which matches no parameter; .*"
            "did you mean router",
        ),
        (Muon(lr=1e-3, adam_patterns=("hed.kernel",)), "adam_patterns.*did you mean head.kernel"),
        (Sgd(lr=1e-3, no_decay=("*ZZZZZ*",)), "parameters are named like blocks.attention"),
    ],
)
def test_a_pattern_that_matches_nothing(config, part):
    with pytest.raises(ConfigError, match=part):
        build(config, total_steps=10, axes=AXES)


def test_default_patterns_may_match_nothing():
    assert rows(Muon(lr=1e-3), {"w": ("embed", "mlp")})["w"].group == "muon"


def test_muon_needs_to_know_the_sides_of_a_matrix():
    axes = {"conv": (None, None, "embed", "mlp")}
    with pytest.raises(ConfigError, match=r"parameter conv.*adam_patterns"):
        build(Muon(lr=1e-3), total_steps=10, axes=axes)
    assert rows(Muon(lr=1e-3, adam_patterns=("conv",)), axes)["conv"].group == "adamw"


@pytest.mark.parametrize(
    ("axes", "stacked", "matrix"),
    [
        ((), 0, False),
        (("layers",), 1, False),
        (("layers", "embed"), 1, False),
        (("layers", "experts"), 1, False),
        (("layers", "experts", "mlp"), 2, False),
        (("embed", "experts"), 0, True),
        ((None, None), 0, True),
    ],
)
def test_stacked_dimensions(axes, stacked, matrix):
    assert groups.stacked_dims(axes) == stacked
    assert groups.is_matrix(axes) is matrix


def test_axes_that_are_not_names():
    with pytest.raises(ConfigError, match=r"logical axes of a\.b: found 3"):
        build(AdamW(lr=1e-3), total_steps=10, axes={"a": {"b": 3}})
