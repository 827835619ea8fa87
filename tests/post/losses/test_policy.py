"""Policy losses equal TRL's on the same tensors, in value and gradient."""

import re
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.oracle import policy as oracle

from ziggurat.core import config
from ziggurat.post.losses import policy
from ziggurat.post.rl.config import Grpo
from ziggurat.post.rl.grpo import loss_switches

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


LENGTHS = np.array([1, 2, 3, 6])
"""Tokens of the completions of one group, none as long as another."""
MOST = 8
"""``max_tokens``."""


def documented() -> dict[str, dict]:
    """The settings of each algorithm, read from the page that users copy them from."""
    page = Path(__file__).parents[3] / "docs/how-to/rl.md"
    table = page.read_text(encoding="utf-8").split("## Which algorithm")[1].split("\n\n")[1]
    found = {}
    for row in table.splitlines()[2:]:
        name, settings = (cell.strip() for cell in row.strip("|").split("|"))
        found[name] = tomllib.loads("\n".join(re.findall(r"`([^`]+)`", settings)))
    return found


def expected_advantages(name, rewards):
    """By the papers' formulas, in numpy."""
    if name == "RLOO":
        return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)
    gains = rewards - rewards.mean()
    return gains if name == "Dr.GRPO" else gains / (rewards.std(ddof=1) + 1e-4)


def expected_gradient(name, advantages, log_ratios, mask):
    """d loss / d log pi of each token, by the papers' formulas; no clip acts."""
    tokens = mask.sum(1)
    rho = {
        "GSPO": np.exp((log_ratios * mask).sum(1) / tokens)[:, None],
        "RLOO": np.exp((log_ratios * mask).sum(1))[:, None],
    }.get(name, np.exp(log_ratios))
    share = {
        "GRPO": 1 / (len(tokens) * tokens),
        "Dr.GRPO": np.full(len(tokens), 1 / (len(tokens) * MOST)),
        "DAPO": np.full(len(tokens), 1 / tokens.sum()),
        "GSPO": 1 / (len(tokens) * tokens),
        "RLOO": np.full(len(tokens), 1 / len(tokens)),
    }[name]
    return -(share * advantages)[:, None] * rho * mask


@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("name", ["GRPO", "Dr.GRPO", "DAPO", "GSPO", "RLOO"])
def test_each_documented_algorithm_weighs_lengths_as_its_paper_says(name, on_policy):
    """Gradients of completions of unequal lengths, with the settings of the documentation."""
    settings = documented()[name]
    # the overlong cost changes rewards, the dynamic sampling rows: both have tests of their own
    tree = {"kind": "grpo", "sampling": {"max_tokens": MOST}} | settings | {"overlong_margin": 0}
    node = config.from_plain(Grpo, tree, "rl.md")
    draw = np.random.default_rng(3)
    mask = (np.arange(6) < LENGTHS[:, None]).astype(np.float32)
    old = draw.uniform(-2, -0.5, mask.shape).astype(np.float32)
    width = 0 if on_policy else 1e-4  # within every clip
    apart = draw.uniform(-width, width, mask.shape)
    rewards = np.array([0.1, 0.9, 0.4, 0.5])
    advantages = policy.group_advantages(
        jnp.asarray(rewards)[None], baseline=node.baseline, scale=node.scale
    )[0]
    np.testing.assert_allclose(advantages, expected_advantages(name, rewards), rtol=1e-5)

    def loss(log_probs):
        given = (log_probs, jnp.asarray(old), advantages, jnp.asarray(mask))
        sums = policy.policy_loss(*given, **loss_switches(node))
        return sums.loss / sums.weight

    found = jax.grad(loss)(jnp.asarray(old + apart, jnp.float32))
    expected = expected_gradient(name, np.asarray(advantages), apart, mask)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-8)


def test_the_ratio_of_a_long_completion_overflows_nothing():
    """Under RLOO it is a product of many."""
    old, mask = jnp.full((2, 400), -3.0), jnp.ones((2, 400))

    def loss(log_probs):
        advantages = jnp.array([1.0, -1.0])
        return policy.policy_loss(log_probs, old, advantages, mask, ratio="product").loss

    assert jnp.isfinite(jax.grad(loss)(jnp.full((2, 400), -0.1))).all()


@pytest.mark.parity
def test_the_oracle_is_what_trl_computes(stored):
    found = oracle.recompute()
    assert found.keys() == stored.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, stored[name], atol=1e-6, err_msg=name)
