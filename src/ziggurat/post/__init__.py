"""Post-training: the objectives behind ``[objective] kind = "sft"``, ``"grpo"`` and the like.

Importing this package registers them by name; each is imported when a run asks for it.

>>> from ziggurat.train.registries import OBJECTIVES
>>> {"sft", "dpo", "grpo"} <= set(OBJECTIVES)
True
"""

from ziggurat.train.registries import DATA, OBJECTIVES

_OFFLINE, _RL = "ziggurat.post.offline", "ziggurat.post.rl"

OBJECTIVES.add_homes(
    {
        "sft": f"{_OFFLINE}.sft:FineTuned",
        "dpo": f"{_OFFLINE}.dpo:Preferred",
        "kto": f"{_OFFLINE}.kto:Judged",
        "reward": f"{_OFFLINE}.reward:Scored",
        "distill": f"{_OFFLINE}.distill:Distilled",
        "grpo": f"{_RL}.grpo:GroupRelative",
    }
)
DATA.add_homes({"problems": f"{_RL}.config:Problems"})
