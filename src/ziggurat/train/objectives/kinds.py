"""The kinds of objective of this package by their names in the run file."""

from ziggurat.train.objectives.images import LabelledImages
from ziggurat.train.objectives.lm import PackedText
from ziggurat.train.parts import Objectives

OBJECTIVES: Objectives = {
    "lm": PackedText(),
    "flow": LabelledImages(),
    "ddpm": LabelledImages(),
}
"""Those of packages above are added by whoever calls ``train.loop.train``."""
