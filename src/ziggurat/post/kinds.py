"""The kinds of objective of this package by their names in the run file."""

from ziggurat.post.offline.distill import Distilled
from ziggurat.post.offline.dpo import Preferred
from ziggurat.post.offline.kto import Judged
from ziggurat.post.offline.reward import Scored
from ziggurat.post.offline.sft import FineTuned
from ziggurat.post.rl.grpo import GroupRelative
from ziggurat.train.parts import Objectives

OBJECTIVES: Objectives = {
    "sft": FineTuned(),
    "dpo": Preferred(),
    "kto": Judged(),
    "reward": Scored(),
    "distill": Distilled(),
    "grpo": GroupRelative(),
}
