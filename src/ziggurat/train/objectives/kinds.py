"""The kinds of objective of this package by their names in the run file."""

from ziggurat.train.objectives.images import LabelledImages
from ziggurat.train.objectives.lm import PackedText
from ziggurat.train.parts import Objectives

OBJECTIVES: Objectives = {
    "lm": PackedText(),
    "flow": LabelledImages(),
    "ddpm": LabelledImages(),
}
"""Objective kinds of this package; callers of ``train.loop.train`` add those of packages above."""
