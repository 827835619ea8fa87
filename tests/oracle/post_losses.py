"""TRL's own losses on fixed tensors: values, and gradients by what the policy computes.

TRL keeps its losses inside trainers' methods; those methods run here on a stand-in for the trainer
and a model that returns the tensors. Needs torch, transformers and trl for :func:`recompute` only::

    python -m tests.oracle.post_losses --write    # recompute and store
    python -m tests.oracle.post_losses --check    # recompute and compare with what is stored
"""

import argparse
import collections
import types
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_suffix(".npz")
PAIRS, TOKENS, VOCABULARY = 6, 9, 11
DPO = {
    "dpo": {"loss": "sigmoid", "beta": 0.3},
    "ipo": {"loss": "ipo", "beta": 0.2},
    "hinge": {"loss": "hinge", "beta": 0.3},
    "robust": {"loss": "robust", "beta": 0.3, "smoothing": 0.1},
    # TRL has conservative DPO as the optimal-transport loss of single pairs, which sorts nothing
    "cdpo": {"loss": "aot", "beta": 0.3, "smoothing": 0.1, "one_by_one": True},
}
KTO = {"kto": {"beta": 0.2, "desirable": 1.3, "undesirable": 0.7}}
REWARD = {"reward": {}, "margin": {"margin": True}, "centred": {"margin": True, "centering": 0.01}}
DISTILL = {
    "forward": {"beta": 0.0, "temperature": 1.0},
    "reverse": {"beta": 1.0, "temperature": 2.0},
    "js": {"beta": 0.5, "temperature": 1.0},
    "gjs": {"beta": 0.1, "temperature": 0.7},
}
SFT = {"sft": {}}
CASES = [*DPO, *KTO, *REWARD, *DISTILL, *SFT]


def tensors() -> dict[str, np.ndarray]:
    """What every loss is computed from; rows 0 to ``PAIRS`` are chosen, the rest rejected."""
    draw = np.random.default_rng(7)
    rows, shape = 2 * PAIRS, (2 * PAIRS, TOKENS)
    lengths = draw.integers(2, TOKENS + 1, rows)
    mask = (np.arange(TOKENS) < lengths[:, None]).astype(np.float32)
    made = {
        "mask": mask,
        "token_log_probs": -draw.gamma(2.0, 1.0, shape) * mask,
        "reference": -draw.gamma(14.0, 1.0, rows),
        "mismatched": -draw.gamma(20.0, 1.0, rows),
        "mismatched_reference": -draw.gamma(21.0, 1.0, rows),
        "desirable": draw.random(rows) < 0.6,
        "scores": draw.normal(0, 2, rows),
        "margins": draw.gamma(1.0, 1.0, PAIRS),
        "student": draw.normal(0, 2, (PAIRS, TOKENS, VOCABULARY)),
        "teacher": draw.normal(0, 2, (PAIRS, TOKENS, VOCABULARY)),
        "targets": draw.integers(0, VOCABULARY, (PAIRS, TOKENS)),
    }
    return {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in made.items()}


def load() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Value and gradient of every case."""
    with np.load(FILE) as file:
        return {case: (file[f"{case}/value"], file[f"{case}/gradient"]) for case in CASES}


def recompute(case: str) -> tuple[np.ndarray, np.ndarray]:
    """TRL's value and gradient."""
    import torch

    given = {name: torch.from_numpy(array) for name, array in tensors().items()}
    for table, of, run in (
        (DPO, "token_log_probs", _dpo),
        (KTO, "token_log_probs", _kto),
        (REWARD, "scores", _reward),
        (DISTILL, "student", _distill),
        (SFT, "student", _sft),
    ):
        if case in table:
            leaf = given[of].clone().requires_grad_()
            value = run(given, leaf, **table[case])
            value.backward()
            return value.detach().numpy().reshape(()), leaf.grad.numpy()
    raise KeyError(case)


def _trainer(**settings: Any) -> Any:
    """What a trainer's loss reads of its ``self``."""
    import torch

    same = types.SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
    )
    return types.SimpleNamespace(
        model=types.SimpleNamespace(training=True),
        accelerator=same,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        use_weighting=False,
        _metrics={"train": collections.defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )


def _model(log_probs: Any, mask: Any) -> Any:
    """A model whose per-token log-probabilities are given; 0 outside of answers, as TRL has it."""
    import torch

    log_probs = log_probs * mask

    def forward(**_: Any) -> Any:
        return types.SimpleNamespace(
            log_probs=log_probs,
            entropy=torch.zeros_like(log_probs),
            mean_logits=torch.zeros_like(log_probs),
            is_top1=torch.zeros_like(log_probs, dtype=torch.bool),
        )

    return forward


def _inputs(given: Any, rows: Any) -> dict[str, Any]:
    """A trainer's batch; its masks count one token of the prompt more."""
    import torch

    mask = given["mask"][rows].long()
    mask = torch.cat([torch.zeros_like(mask[:, :1]), mask], 1)
    ids = torch.zeros_like(mask)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask}


def _dpo(given: Any, leaf: Any, loss: str, beta: float, smoothing: float = 0.0, one_by_one=False):
    import torch
    from trl import DPOTrainer

    trainer = _trainer(
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        beta=beta,
        label_smoothing=smoothing,
        loss_types=[loss],
        loss_weights=[1.0],
    )
    pairs = torch.arange(PAIRS)
    groups = [pairs[i : i + 1] for i in range(PAIRS)] if one_by_one else [pairs]
    losses = []
    for group in groups:
        rows = torch.cat([group, group + PAIRS])
        inputs = _inputs(given, rows)
        inputs["ref_chosen_logps"] = given["reference"][group]
        inputs["ref_rejected_logps"] = given["reference"][group + PAIRS]
        losses.append(
            DPOTrainer._compute_loss(
                trainer, _model(leaf[rows], given["mask"][rows]), inputs, False
            )
        )
    return torch.stack(losses).mean()


def _kto(given: Any, leaf: Any, beta: float, desirable: float, undesirable: float):
    import torch
    from trl import KTOTrainer

    trainer = _trainer(
        calculate_KL=True,
        loss_type="kto",
        beta=beta,
        desirable_weight=desirable,
        undesirable_weight=undesirable,
        _compute_kl_logps=lambda model, batch: given["mismatched"],
    )
    inputs = _inputs(given, torch.arange(2 * PAIRS))
    inputs |= {"label": given["desirable"], "ref_logps": given["reference"]}
    inputs["ref_KL_logps"] = given["mismatched_reference"]
    return KTOTrainer._compute_loss(trainer, _model(leaf, given["mask"]), inputs, False)


def _reward(given: Any, leaf: Any, margin: bool = False, centering: float | None = None):
    from trl import RewardTrainer

    trainer = _trainer(args=types.SimpleNamespace(center_rewards_coefficient=centering))
    inputs = {"attention_mask": given["mask"]}
    if margin:
        inputs["margin"] = given["margins"]

    def model(**_: Any) -> Any:
        return types.SimpleNamespace(logits=leaf[:, None])

    return RewardTrainer.compute_loss(trainer, model, inputs)


def _labels(given: Any) -> Any:
    return given["targets"].masked_fill(given["mask"][:PAIRS] == 0, -100)


def _distill(given: Any, leaf: Any, beta: float, temperature: float):
    from trl.experimental.gkd import GKDTrainer

    return GKDTrainer.generalized_jsd_loss(
        leaf, given["teacher"], _labels(given), beta=beta, temperature=temperature
    )


def _sft(given: Any, leaf: Any):
    """The cross-entropy by which TRL fine-tunes is transformers' own."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    return ForCausalLMLoss(leaf, None, VOCABULARY, shift_labels=_labels(given))


def write() -> None:
    """Recompute every case and store the results."""
    arrays = {}
    for case in CASES:
        arrays[f"{case}/value"], arrays[f"{case}/gradient"] = recompute(case)
    np.savez_compressed(FILE, **arrays)


def check() -> None:
    """Recompute every case and compare; tolerance 1e-6 on values and gradients of order one."""
    stored = load()
    for case in CASES:
        compare(case, recompute(case), stored[case])


def compare(case: str, found: Any, stored: Any) -> None:
    """Fail, naming the case, where a recomputed result differs from the stored one."""
    for ours, theirs in zip(found, stored, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-6, err_msg=case)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="recompute and store")
    action.add_argument("--check", action="store_true", help="recompute and compare")
    write() if parser.parse_args().write else check()


if __name__ == "__main__":
    main()
