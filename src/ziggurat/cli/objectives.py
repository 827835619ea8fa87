"""The objectives that run files may name: those of every package, joined here, since ``train`` may
not import ``post``."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ziggurat.train.parts import Objectives


def known() -> "Objectives":
    """All kinds of objective by their names in the run file."""
    from ziggurat import post
    from ziggurat.train.objectives.kinds import OBJECTIVES

    return {**OBJECTIVES, **post.OBJECTIVES}
