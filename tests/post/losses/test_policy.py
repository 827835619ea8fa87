"""Policy losses equal TRL's on the same tensors, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.oracle import policy as oracle

from ziggurat.post.losses import policy

CLOSE = 1e-5
"""Float32 sums of fewer than a hundred terms of size 1, in another order."""


@pytest.fixture(scope="module")
def stored():
    return oracle.load()


@pytest.fixture(scope="module")
def given(stored):
    return {name[3:]: jnp.asarray(a) for name, a in stored.items() if name.startswith("in.")}


@pytest.mark.parametrize("case", oracle.LOSSES)
def test_loss_and_gradient_equal_trl(case, given, stored):
    switches = oracle.LOSSES[case]
    extra = {}
    if "kl_coef" in switches:
        extra["reference"] = given["reference"]
    if "sampler_cap" in switches:
        extra["sampler"] = given["sampler"]

    def loss(log_probs):
        sums = policy.policy_loss(
            log_probs, given["old"], given["advantages"], given["mask"], **extra, **switches
        )
        return sums.loss / sums.weight, sums

    (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(given["log_probs"])
    np.testing.assert_allclose(value, stored[f"loss.{case}"], atol=CLOSE)
    np.testing.assert_allclose(gradient, stored[f"gradient.{case}"], atol=CLOSE)
    assert 0 < sums.clipped / sums.weight < 1
    assert (sums.kl > 0) == ("kl_coef" in switches)


@pytest.mark.parametrize("case", oracle.ADVANTAGES)
def test_advantages_equal_trl(case, given, stored):
    found = policy.group_advantages(given["rewards"], **oracle.ADVANTAGES[case])
    np.testing.assert_allclose(found, stored[f"advantages.{case}"], atol=CLOSE)
    np.testing.assert_allclose(found[1], 0, atol=CLOSE)  # rewards of that group are equal


def test_overlong_cost_equals_trl(given, stored):
    found = policy.overlong_cost(given["lengths"], longest=oracle.LONGEST, margin=4)
    np.testing.assert_allclose(found, stored["overlong"], atol=CLOSE)


@pytest.mark.parametrize("aggregate", ["sequence", "token", "constant"])
def test_rows_left_out_change_neither_loss_nor_weight(aggregate, given):
    """Whatever stands where the mask is 0, NaN included."""
    names = ("log_probs", "old", "advantages", "mask", "reference")
    rows = {name: given[name] for name in names}
    odd = {name: jnp.full((1, *a.shape[1:]), jnp.nan) for name, a in rows.items()}
    odd |= {"mask": jnp.zeros((1, oracle.TOKENS)), "advantages": jnp.ones(1)}
    more = {name: jnp.concatenate([rows[name], odd[name]]) for name in names}
    switches = dict(aggregate=aggregate, longest=oracle.LONGEST, kl_coef=0.1)

    def sums(batch):
        a = [batch[name] for name in names[:4]]
        return policy.policy_loss(*a, reference=batch["reference"], **switches)

    for plain, longer in zip(sums(rows), sums(more)):
        np.testing.assert_allclose(plain, longer, rtol=1e-6)


def test_micro_batches_add_up(given):
    """Sums over two halves are those of the whole, under every aggregation."""
    names = ("log_probs", "old", "advantages", "mask")
    for aggregate in ("sequence", "token", "constant"):
        whole = policy.policy_loss(*(given[n] for n in names), aggregate=aggregate)
        halves = [
            policy.policy_loss(*(given[n][part] for n in names), aggregate=aggregate)
            for part in (slice(0, 5), slice(5, None))
        ]
        for total, first, second in zip(whole, *halves):
            np.testing.assert_allclose(total, first + second, rtol=1e-5)


@pytest.mark.parity
def test_the_oracle_is_what_trl_computes(stored):
    found = oracle.recompute()
    assert found.keys() == stored.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, stored[name], atol=1e-6, err_msg=name)
