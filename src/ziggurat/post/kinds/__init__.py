"""Kinds of objective over given data: fine-tuning, preference, rewards, distillation."""

from ziggurat.post.kinds.distill import Distilled
from ziggurat.post.kinds.dpo import Preferred
from ziggurat.post.kinds.kto import Judged
from ziggurat.post.kinds.reward import Scored
from ziggurat.post.kinds.sft import FineTuned
from ziggurat.train.parts import Objectives

OFFLINE: Objectives = {
    "sft": FineTuned(),
    "dpo": Preferred(),
    "kto": Judged(),
    "reward": Scored(),
    "distill": Distilled(),
}
"""Those that need no rollouts, by their names in the run file."""
