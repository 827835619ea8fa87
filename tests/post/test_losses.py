"""Every loss equals TRL's on the same tensors, value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.oracle import post_losses as oracle

from ziggurat.core.errors import ConfigError
from ziggurat.optim import LossConfig, next_token_loss
from ziggurat.post.losses.distillation import divergence
from ziggurat.post.losses.dpo import dpo as dpo_loss
from ziggurat.post.losses.kto import kto as kto_loss
from ziggurat.post.losses.kto import reference_point
from ziggurat.post.losses.reward import bradley_terry

GIVEN = {name: jnp.asarray(array) for name, array in oracle.tensors().items()}
MASK, PAIRS = GIVEN["mask"], oracle.PAIRS


def dpo(log_probs, loss, beta, smoothing=0.0, one_by_one=False):
    sums, tokens = (log_probs * MASK).sum(-1), MASK.sum(-1)
    pair = (sums[:PAIRS], sums[PAIRS:], GIVEN["reference"][:PAIRS], GIVEN["reference"][PAIRS:])
    kind = "sigmoid" if loss == "aot" else loss
    counts = {"chosen_tokens": tokens[:PAIRS], "rejected_tokens": tokens[PAIRS:]}
    return dpo_loss(*pair, beta=beta, kind=kind, label_smoothing=smoothing, **counts).mean()


def kto(log_probs, beta, desirable, undesirable):
    ratio = GIVEN["mismatched"] - GIVEN["mismatched_reference"]
    point = reference_point(ratio, jnp.ones_like(ratio))
    ratio = (log_probs * MASK).sum(-1) - GIVEN["reference"]
    weights = {"desirable_weight": desirable, "undesirable_weight": undesirable}
    return kto_loss(ratio, GIVEN["desirable"], point, beta=beta, **weights).mean()


def reward(scores, margin=False, centering=0.0):
    margin = GIVEN["margins"] if margin else None
    pair = (scores[:PAIRS], scores[PAIRS:])
    return bradley_terry(*pair, margin=margin, centering=centering).mean()


def distill(student, beta, temperature):
    mask = MASK[:PAIRS]
    found = divergence(student, GIVEN["teacher"], beta=beta, temperature=temperature)
    return (found * mask).sum() / mask.sum()


def sft(student):
    head = jnp.eye(oracle.VOCABULARY)
    total, sums = next_token_loss(student, head, GIVEN["targets"], MASK[:PAIRS], LossConfig())
    return total / sums.tokens


@pytest.mark.parametrize("case", oracle.CASES)
def test_equals_trl(case):
    """To 1e-5 of values and gradients of order one: sums of a few dozen float32 terms."""
    value, gradient = oracle.load()[case]
    for table, of, ours in (
        (oracle.DPO, "token_log_probs", dpo),
        (oracle.KTO, "token_log_probs", kto),
        (oracle.REWARD, "scores", reward),
        (oracle.DISTILL, "student", distill),
        (oracle.SFT, "student", sft),
    ):
        if case in table:
            function = functools.partial(ours, **table[case])
            found = jax.jit(jax.value_and_grad(function))(GIVEN[of])
            np.testing.assert_allclose(found[0], value, atol=1e-5, rtol=1e-5)
            np.testing.assert_allclose(found[1], gradient, atol=1e-5, rtol=1e-5)
            assert np.abs(gradient).max() > 1e-3
            return
    raise AssertionError(case)


def test_smoothing_belongs_to_two_kinds():
    one = jnp.ones(1)
    with pytest.raises(ConfigError, match=r"ipo: label_smoothing: found 0.1; expected 0"):
        dpo_loss(one, one, one, one, beta=0.1, kind="ipo", label_smoothing=0.1)
    with pytest.raises(ConfigError, match="found no numbers of tokens"):
        dpo_loss(one, one, one, one, beta=0.1, kind="ipo")


def test_a_divergence_of_certain_predictions_is_finite():
    certain = jnp.array([[0.0, -jnp.inf]])
    found = divergence(jnp.zeros((1, 2)), certain)
    np.testing.assert_allclose(found, np.log(2.0), rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: divergence(x, certain).sum())(jnp.zeros((1, 2)))).all()


@pytest.mark.parity
@pytest.mark.parametrize("case", oracle.CASES)
def test_stored_results_are_trls(case):
    oracle.compare(case, oracle.recompute(case), oracle.load()[case])
