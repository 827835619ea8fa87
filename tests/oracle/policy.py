"""What TRL computes for policy losses: inputs, values and gradients of a table of switches.

``GRPOTrainer._compute_loss`` and ``RLOOTrainer._compute_loss`` are run as they are, on a stand-in
for the trainer whose model gives the log-probabilities of this file; advantages come from the lines
of TRL that make them, which are no function of their own and are written out here with torch::

    python -m tests.oracle.policy --write    # recompute and store
    python -m tests.oracle.policy --check    # recompute and compare with what is stored
"""

import argparse
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_suffix(".npz")
PROMPTS, GROUP, TOKENS = 3, 4, 7
LONGEST = 9
LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {},
    "kl": {"kl_coef": 0.1},
    "clip_higher": {"clip_low": 0.1, "clip_high": 0.28},
    "dr_grpo": {"aggregate": "constant", "longest": LONGEST},
    "dapo": {"aggregate": "token", "clip_high": 0.28, "kl_coef": 0.05},
    "gspo": {"ratio": "sequence", "clip_low": 0.01, "clip_high": 0.02},
    "gspo_kl": {"ratio": "sequence", "kl_coef": 0.1},
    "truncated": {"sampler_cap": 1.1, "kl_coef": 0.1},
    "rloo": {"ratio": "product", "clip_low": 0.3, "clip_high": 0.4},
}
ADVANTAGES = {
    "group": {"scale": "group"},
    "batch": {"scale": "batch"},
    "none": {"scale": "none"},
    "rloo": {"baseline": "leave_one_out", "scale": "none"},
    "rloo_batch": {"baseline": "leave_one_out", "scale": "batch"},
}
KINDS = {"sequence": "grpo", "token": "dapo", "constant": "dr_grpo"}


def inputs() -> dict[str, np.ndarray]:
    """Tensors of a batch; a group of equal rewards and rows of several lengths among them."""
    draw = np.random.default_rng(5)
    shape = (PROMPTS * GROUP, TOKENS)
    policy = draw.uniform(-3, -0.1, shape).astype(np.float32)
    near = {
        name: (policy + draw.normal(0, width, shape)).astype(np.float32)
        for name, width in (("old", 0.3), ("reference", 0.5), ("sampler", 0.2))
    }
    rewards = draw.uniform(0, 1, (PROMPTS, GROUP)).astype(np.float32)
    rewards[1] = 0.5
    lengths = draw.integers(1, TOKENS + 1, shape[0])
    mask = (np.arange(TOKENS) < lengths[:, None]).astype(np.float32)
    advantages = draw.normal(0, 1, shape[0]).astype(np.float32)
    return near | {
        "log_probs": policy,
        "mask": mask,
        "rewards": rewards,
        "advantages": advantages,
        "lengths": np.arange(0, 14, dtype=np.int32),
    }


def recompute() -> dict[str, np.ndarray]:
    """Everything stored: the inputs, and by case a loss with its gradient, or advantages."""
    given = inputs()
    stored = {f"in.{name}": array for name, array in given.items()}
    for name, switches in LOSSES.items():
        loss, gradient = _loss(given, switches)
        stored |= {f"loss.{name}": loss, f"gradient.{name}": gradient}
    for name, switches in ADVANTAGES.items():
        stored[f"advantages.{name}"] = _advantages(given["rewards"], **switches)
    from trl.rewards import get_soft_overlong_punishment

    cost = get_soft_overlong_punishment(max_completion_len=LONGEST, soft_punish_cache=4)
    stored["overlong"] = np.array(cost([[0] * int(n) for n in given["lengths"]]), np.float32)
    return stored


def _loss(given: dict[str, np.ndarray], switches: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    import torch
    from trl import GRPOTrainer, RLOOTrainer

    tensors = {name: torch.from_numpy(array) for name, array in given.items()}
    policy = tensors["log_probs"].clone().requires_grad_()
    trainer = _trainer(policy, switches)
    mask = tensors["mask"]
    empty = torch.zeros((mask.shape[0], 0), dtype=torch.long)
    batch = {
        "prompt_ids": empty,
        "prompt_mask": empty,
        "completion_ids": torch.zeros(mask.shape, dtype=torch.long),
        "completion_mask": mask,
        "advantages": tensors["advantages"],
        "old_per_token_logps": tensors["old"],
        "ref_per_token_logps": tensors["reference"],
        "num_items_in_batch": mask.sum(),
    }
    if trainer.use_vllm:
        apart = (tensors["old"] - tensors["sampler"]) * mask
        batch["importance_sampling_ratio"] = apart.exp().clamp(max=switches["sampler_cap"])
    if switches.get("ratio") == "product":
        batch["old_logps"] = (tensors["old"] * mask).sum(1)
        loss = RLOOTrainer._compute_loss(trainer, None, batch)
    else:
        loss = GRPOTrainer._compute_loss(trainer, None, batch)
    loss.backward()
    assert policy.grad is not None
    return loss.detach().numpy(), policy.grad.numpy()


def _trainer(policy: Any, switches: dict[str, Any]) -> Any:
    """What ``_compute_loss`` reads of a trainer."""
    import torch

    corrected = "sampler_cap" in switches
    accelerator = types.SimpleNamespace(
        num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
    )
    return types.SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            policy,
            torch.zeros(policy.shape),
            None,
        ),
        accelerator=accelerator,
        args=types.SimpleNamespace(
            delta=None, use_bias_correction_kl=False, steps_per_generation=1
        ),
        aux_loss_enabled=False,
        beta=switches.get("kl_coef", 0.0),
        current_gradient_accumulation_steps=1,
        epsilon_high=switches.get("clip_high", 0.2),
        epsilon_low=switches.get("clip_low", 0.2),
        importance_sampling_level=switches.get("ratio", "token"),
        loss_type=KINDS[switches.get("aggregate", "sequence")],
        max_completion_length=LONGEST,
        model=types.SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=corrected,
        vllm_importance_sampling_correction=corrected,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )


def _advantages(rewards: np.ndarray, *, scale: str, baseline: str = "mean") -> np.ndarray:
    """TRL 1.16: ``GRPOTrainer._generate_and_score_completions`` and that of ``RLOOTrainer``."""
    import torch
    from trl.trainer.utils import nanstd

    grouped = torch.from_numpy(rewards)
    flat = grouped.view(-1)
    if baseline == "leave_one_out":
        members = grouped.shape[1]
        others = (torch.nansum(grouped, 1, keepdim=True) - grouped) / (members - 1)
        found = flat - others.view(-1)
        if scale == "batch":
            found = (found - torch.nanmean(found)) / (nanstd(found) + 1e-4)
        return found.view(grouped.shape).numpy()
    found = flat - torch.nanmean(grouped, dim=1).repeat_interleave(grouped.shape[1])
    if scale == "group":
        deviations = nanstd(grouped, dim=1).repeat_interleave(grouped.shape[1])
        found = found / (deviations + 1e-4)
    elif scale == "batch":
        found = found / (nanstd(flat) + 1e-4)
    return found.view(grouped.shape).numpy()


def load() -> dict[str, np.ndarray]:
    """What is stored."""
    with np.load(FILE) as file:
        return dict(file)


def main() -> None:
    parser = argparse.ArgumentParser()
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true")
    action.add_argument("--check", action="store_true")
    found = recompute()
    if parser.parse_args().write:
        np.savez_compressed(FILE, **found)
        return
    stored = load()
    assert stored.keys() == found.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, stored[name], atol=1e-6, err_msg=name)


if __name__ == "__main__":
    main()
