"""Post-training: fine-tuning, preference, rewards and distillation behind the one training loop,
with full weights or adapters (:mod:`ziggurat.post.tuning`)."""

from ziggurat.post.kinds import OFFLINE
from ziggurat.train.parts import Objectives

OBJECTIVES: Objectives = {**OFFLINE}
"""The kinds of this package by their names in the run file."""
