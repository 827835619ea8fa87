"""From judged completions to the rows of a training batch, on the host."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from ziggurat.core.protocols import Batch
from ziggurat.post.losses import policy
from ziggurat.post.rl.arena import RolloutGroup
from ziggurat.post.rl.config import Grpo


def completion_rows(groups: Sequence[RolloutGroup], length: int) -> Batch:
    """A row for each completion, prompt first: the keys of :data:`ziggurat.core.protocols.Batch`,
    ``loss_mask`` 1 where the target is the completion's, and ``sampler_log_probs``.

    Args:
        groups: of one step.
        length: columns; at least the tokens of the longest prompt and completion.
    """
    rows = [(group.prompt, drawn) for group in groups for drawn in group.completions]
    shape = (len(rows), length)
    integers = ("tokens", "targets", "segment_ids", "positions")
    batch: Batch = {name: np.zeros(shape, np.int32) for name in integers}
    batch |= {name: np.zeros(shape, np.float32) for name in ("loss_mask", "sampler_log_probs")}
    for row, (prompt, drawn) in enumerate(rows):
        ids = [*prompt, *drawn.tokens]
        end, first = len(ids) - 1, len(prompt) - 1
        batch["tokens"][row, :end] = ids[:-1]
        batch["targets"][row, :end] = ids[1:]
        batch["segment_ids"][row, :end] = 1
        batch["positions"][row, :end] = np.arange(end)
        batch["loss_mask"][row, first:end] = 1
        batch["sampler_log_probs"][row, first:end] = drawn.log_probs
    return batch


def shaped_rewards(groups: Sequence[RolloutGroup], node: Grpo) -> Float32[np.ndarray, "p q"]:
    """Rewards of all completions, with the penalty on long ones if the run asks for it."""
    rewards = np.array([group.rewards for group in groups], np.float32)
    if node.overlong_margin:
        lengths = jnp.array([[len(d.tokens) for d in g.completions] for g in groups])
        longest, margin = node.sampling.max_tokens, node.overlong_margin
        rewards += np.asarray(policy.overlong_cost(lengths, longest=longest, margin=margin))
    return rewards


def kept_rows(
    groups: Sequence[RolloutGroup], rewards: Float32[np.ndarray, "p q"], node: Grpo
) -> Float32[np.ndarray, "b"]:
    """Mask of completions: 1 where the loss counts one, 0 where a setting of the run leaves it
    out."""
    kept = np.ones(rewards.shape, np.float32)
    if node.dynamic_sampling:
        kept *= np.asarray(policy.informative(jnp.asarray(rewards)))[:, None]
    if node.mask_truncated:
        kept *= np.array([[d.ended for d in g.completions] for g in groups], np.float32)
    return kept.reshape(-1)
