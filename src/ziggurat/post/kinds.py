"""The kinds of objective of this package by their names in the run file."""

from ziggurat.post.rl.grpo import GroupRelative
from ziggurat.train.parts import Objectives

OBJECTIVES: Objectives = {"grpo": GroupRelative()}
