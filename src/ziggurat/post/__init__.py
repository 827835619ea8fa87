"""Post-training: SFT, preference, RL and distillation objectives. Empty until its issue lands."""

from ziggurat.train.parts import Objectives

OBJECTIVES: Objectives = {}
"""The kinds of this package by their names in the run file."""
