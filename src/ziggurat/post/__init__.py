"""Post-training: the objectives behind ``[objective] kind = "sft"``, ``"grpo"`` and the like.

>>> from ziggurat import post
>>> {"sft", "dpo", "grpo"} <= set(post.OBJECTIVES)
True
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ziggurat.post.kinds import OBJECTIVES

__all__ = ["OBJECTIVES"]


def __getattr__(name: str) -> Any:
    """Kinds are imported when they are asked for: reward processes need none of them."""
    if name != "OBJECTIVES":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ziggurat.post.kinds import OBJECTIVES

    return OBJECTIVES
