"""Routers of mixtures of experts: which experts a token is sent to, with what weights, and what a
router reports for its losses."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ziggurat.nn.linear import constant, parameter
from ziggurat.nn.norm import root_mean_square_normed
from ziggurat.nn.precision import Precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """Config of a router: how a token chooses its experts."""

    experts: int
    """Routed experts."""
    chosen: int
    """Experts each token is sent to."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    """From logits to scores: over all experts, or each for itself (DeepSeek-V3)."""
    normalise: bool = True
    """Scores of the chosen experts are divided by their sum. Of a softmax this is the softmax over
    the chosen logits alone (Mixtral, GPT-OSS)."""
    scale: float = 1.0
    """Multiplies the weights of the chosen experts."""
    bias: bool = False
    """Biases on the logits."""
    correction: bool = False
    """A bias that takes part in the choice alone, not in the weights (DeepSeek-V3)."""
    groups: int = 1
    """Equal groups of experts; only experts of the best are chosen from."""
    chosen_groups: int = 1
    """Best groups, from whose experts those of a token are chosen."""
    group_score: Literal["two_best", "best"] = "two_best"
    """A group is as good as its two best experts together (DeepSeek-V3), or as its best
    (DeepSeek-V2)."""
    least_sum: float = 0.0
    """Scores are divided by no less than this (Ernie 4.5)."""
    input_norm_eps: float | None = None
    """If given, the router reads its input divided by its root mean square, with this added to the
    mean square, times a learned vector over the root of the width (Gemma 4)."""
    expert_scale: bool = False
    """A learned number of each expert multiplies its weights (Gemma 4)."""


class Routing(NamedTuple):
    """Statistics of one layer's router, as sums over tokens; padding does not count."""

    counts: Float[Array, "*l e"]
    """Tokens sent to each expert."""
    probabilities: Float[Array, "*l e"]
    """Scores as shares: their softmax, or sigmoids divided by their sum. Differentiable."""
    squared_normaliser: Float[Array, "*l"]
    """Squares of the logits' log-sum-exp. Differentiable."""
    tokens: Float[Array, "*l"]
    """Number of tokens."""


class Router(nnx.Module):
    r"""Scores :math:`s = \sigma(xW + b)` in float32, and the ``k`` best experts of each token.

    Papers: Shazeer et al. 2017, https://arxiv.org/abs/1701.06538; groups and correction:
    DeepSeek-AI 2024, https://arxiv.org/abs/2412.19437, section 2.1.2.
    """

    def __init__(
        self, c: RouterConfig, width: int, *, std: float, precision: Precision, rngs: nnx.Rngs
    ):
        self.kernel = parameter(rngs, (width, c.experts), ("embed", "experts"), std, precision)
        per_expert = (c.experts,), ("experts",), precision
        self.bias = constant(0.0, *per_expert) if c.bias else None
        self.correction_bias = constant(0.0, *per_expert) if c.correction else None
        normed = c.input_norm_eps is not None
        self.input_scale = constant(1.0, (width,), ("embed",), precision) if normed else None
        self.expert_scale = constant(1.0, *per_expert) if c.expert_scale else None
        self.config = c

    def __call__(
        self, x: Float[Array, "b t d"], counted: Bool[Array, "b t"] | None = None
    ) -> tuple[Int[Array, "b t k"], Float[Array, "b t k"], Routing]:
        """Chosen experts, their weights (float32), and the report over the tokens ``counted``."""
        kernel = self.kernel[...].astype(jnp.float32)
        logits = jnp.einsum("btd,de->bte", self._input(x), kernel)
        if self.bias is not None:
            logits = logits + self.bias[...].astype(jnp.float32)[None, None]
        softmax = self.config.scores == "softmax"
        scores = jax.nn.softmax(logits) if softmax else jax.nn.sigmoid(logits)
        chosen = self._choose(jax.lax.stop_gradient(scores))
        weights = jnp.take_along_axis(scores, chosen, axis=-1)
        if self.config.normalise:
            whole = weights.sum(-1, keepdims=True) + 1e-20
            weights = weights / jnp.maximum(whole, self.config.least_sum)
        if self.expert_scale is not None:
            weights = weights * self.expert_scale[...].astype(jnp.float32)[chosen]
        shares = scores if softmax else scores / (scores.sum(-1, keepdims=True) + 1e-20)
        return chosen, weights * self.config.scale, _report(logits, shares, chosen, counted)

    def _input(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Input of the logits, in float32."""
        wide, eps = x.astype(jnp.float32), self.config.input_norm_eps
        if eps is None or self.input_scale is None:
            return wide
        scale = self.input_scale[...].astype(jnp.float32) * x.shape[-1] ** -0.5
        return root_mean_square_normed(wide, eps) * scale[None, None]

    def _choose(self, scores: Float[Array, "b t e"]) -> Int[Array, "b t k"]:
        c = self.config
        if self.correction_bias is not None:
            correction = jax.lax.stop_gradient(self.correction_bias[...].astype(jnp.float32))
            scores = scores + correction[None, None]
        if c.groups > 1:
            grouped = scores.reshape(*scores.shape[:-1], c.groups, -1)
            best_of_group = 2 if c.group_score == "two_best" else 1
            values = jax.lax.top_k(grouped, best_of_group)[0].sum(-1)
            best = jax.lax.top_k(values, c.chosen_groups)[1]
            allowed = jax.nn.one_hot(best, c.groups, dtype=bool).any(-2)
            scores = jnp.where(allowed[..., None], grouped, -jnp.inf).reshape(scores.shape)
        return jax.lax.top_k(scores, c.chosen)[1]


def _report(logits: Array, shares: Array, chosen: Array, counted: Array | None) -> Routing:
    mask = jnp.ones(logits.shape[:2]) if counted is None else counted.astype(jnp.float32)
    sent = jax.nn.one_hot(chosen, logits.shape[-1]).sum(-2)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    return Routing(
        counts=jnp.einsum("bte,bt->e", sent, mask),
        probabilities=jnp.einsum("bte,bt->e", shares, mask),
        squared_normaliser=(normaliser**2 * mask).sum(),
        tokens=mask.sum(),
    )


def load_balancing_loss(routings: Sequence[Routing]) -> Float[Array, ""]:
    r"""Switch Transformer's loss on uneven routing, over all layers' tokens together as in Mixtral.

    .. math:: e \sum_i \frac{\mathrm{counts}_i}{n} \frac{\mathrm{probabilities}_i}{n}

    It is ``k`` where all ``e`` experts get the same share. Papers: Fedus et al. 2021,
    https://arxiv.org/abs/2101.03961, equations 4 to 6; Jiang et al. 2024,
    https://arxiv.org/abs/2401.04088.

    >>> even = Routing(jnp.full(4, 6.0), jnp.full(4, 3.0), jnp.array(0.0), jnp.array(12.0))
    >>> float(load_balancing_loss([even]))  # each of 12 tokens was sent to 2 experts
    2.0
    """
    counts = sum(r.counts.reshape(-1, r.counts.shape[-1]).sum(0) for r in routings)
    probabilities = sum(
        r.probabilities.reshape(-1, r.probabilities.shape[-1]).sum(0) for r in routings
    )
    tokens = jnp.maximum(sum(r.tokens.sum() for r in routings), 1.0)
    shares = jax.lax.stop_gradient(counts) / tokens * (probabilities / tokens)
    return shares.shape[-1] * shares.sum()


def router_z_loss(routings: Sequence[Routing]) -> Float[Array, ""]:
    """Mean over tokens and layers of the squared log-sum-exp of a router's logits.

    Paper: Zoph et al. 2022 (ST-MoE), https://arxiv.org/abs/2202.08906, equation 5.
    """
    tokens = jnp.maximum(sum(r.tokens.sum() for r in routings), 1.0)
    return jnp.asarray(sum(r.squared_normaliser.sum() for r in routings)) / tokens


def largest_load(routings: Sequence[Routing]) -> Float[Array, ""]:
    """Tokens of the busiest expert of any layer over the mean of its layer; 1 is even."""
    loads = [r.counts.max(-1) / jnp.maximum(r.counts.mean(-1), 1e-9) for r in routings]
    return jnp.concatenate([jnp.atleast_1d(load) for load in loads]).max()
