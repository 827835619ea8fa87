"""Sampling parameters of a request, and the sampler that runs on the device.

>>> import jax, jax.numpy as jnp
>>> logits = jnp.array([[0.0, 3.0, 1.0]])
>>> sample(logits, SamplingArrays.of(SamplingParams(temperature=0.0)), jnp.array(7)).tolist()
[1]
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from ziggurat.core import prng
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.constraint import Constraint

MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_BIASES = 300
NEVER = -math.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling and stop parameters of one request.

    Raises:
        RequestError: a value is out of range; ``param`` names it.

    >>> SamplingParams(top_p=1.5)
    Traceback (most recent call last):
    ziggurat.serve.errors.RequestError: top_p: found 1.5; expected a number in (0, 1]
    """

    max_tokens: int | None = None
    """Most tokens to generate; default: as many as the context holds."""
    temperature: float | int = 1.0
    """Divides the logits; 0 takes the most likely token always (greedy)."""
    top_p: float | int = 1.0
    """Keep the smallest set of most likely tokens whose probabilities reach this sum."""
    top_k: int = 0
    """Keep this many most likely tokens; 0 or -1: all."""
    min_p: float | int = 0.0
    """Keep tokens at least this fraction as likely as the most likely one."""
    presence_penalty: float | int = 0.0
    """Taken off the logits of tokens that the output holds."""
    frequency_penalty: float | int = 0.0
    """Taken off the logits of tokens for each time that the output holds them."""
    repetition_penalty: float | int = 1.0
    """Divides the positive logits of tokens that prompt or output hold, and multiplies the negative
    ones."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of an id and what is added to its logit, before the penalties."""
    min_tokens: int = 0
    """End ids, the model's own and ``stop_token_ids``, cannot come before this many tokens."""
    constraint: Callable[[], Constraint] | None = None
    """Makes what constrains a generation; called for each of the ``n``."""
    seed: int | None = None
    """The draws are a function of seed and position; default: a fresh seed per request. In float32
    the same seed gives the same tokens whatever else is served, unless two are equal to the last
    bits; in bfloat16 answers may differ with the load."""
    stop: tuple[str, ...] = ()
    """Texts that end the generation and are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end the generation, besides the model's own."""
    ignore_eos: bool = False
    """Continue after the model's own end ids."""
    logprobs: int | None = None
    """Report each token's log-probability, and those of this many most likely tokens."""
    n: int = 1
    """Generations per prompt."""

    def __post_init__(self):
        def check(good: bool, name: str, expected: str) -> None:
            if not good:
                found = getattr(self, name)
                raise RequestError(name, found=repr(found), expected=expected, param=name)

        limit, t = self.max_tokens, self.temperature
        check(limit is None or limit >= 1, "max_tokens", "a number >= 1")
        check(math.isfinite(t) and 0 <= t <= 100, "temperature", "a number in [0, 100]")
        check(0 < self.top_p <= 1, "top_p", "a number in (0, 1]")
        check(-1 <= self.top_k < 2**31, "top_k", "a number >= 1, or 0 for all tokens")
        check(0 <= self.min_p <= 1, "min_p", "a number in [0, 1]")
        for name in ("presence_penalty", "frequency_penalty"):
            check(-2 <= getattr(self, name) <= 2, name, "a number in [-2, 2]")
        check(0 < self.repetition_penalty <= 100, "repetition_penalty", "a number in (0, 100]")
        self._check_bias(check)
        least = self.min_tokens
        check(0 <= least <= (limit or least), "min_tokens", "a number from 0 to max_tokens")
        seed = self.seed
        check(seed is None or -(2**63) <= seed < 2**64, "seed", "a 64-bit integer")
        check(len(self.stop) <= MAX_STOPS, "stop", f"at most {MAX_STOPS} texts")
        check(all(self.stop), "stop", "texts that are not empty")
        check(all(i >= 0 for i in self.stop_token_ids), "stop_token_ids", "ids >= 0")
        check(1 <= self.n <= MAX_CHOICES, "n", f"a number from 1 to {MAX_CHOICES}")
        top = self.logprobs
        in_range = top is None or 0 <= top <= MAX_LOGPROBS
        check(in_range, "logprobs", f"a number from 0 to {MAX_LOGPROBS}")

    def _check_bias(self, check: Callable[[bool, str, str], None]) -> None:
        bias = self.logit_bias
        check(len(bias) <= MAX_BIASES, "logit_bias", f"at most {MAX_BIASES} ids")
        check(len({i for i, _ in bias}) == len(bias), "logit_bias", "each id once")
        good = all(i >= 0 and -100 <= value <= 100 for i, value in bias)
        check(good, "logit_bias", "ids >= 0 with numbers in [-100, 100]")


class SamplingRow(NamedTuple):
    """Sampling parameters of one sequence as numbers; the defaults are greedy, as for padding."""

    seed: int = 0
    """Seed of 31 bits, see :func:`device_seed`."""
    choice: int = 0
    """Index of the sequence among the ``n`` of its request."""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """Number of tokens kept; 0: all."""
    min_p: float = 0.0
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0

    @classmethod
    def of(cls, params: SamplingParams, choice: int = 0, seed: int = 0) -> "SamplingRow":
        """Numbers of a request's parameters; ``seed`` is for requests without one."""
        return cls(
            seed=device_seed(params.seed if params.seed is not None else seed),
            choice=choice,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=max(params.top_k, 0),
            min_p=params.min_p,
            presence=params.presence_penalty,
            frequency=params.frequency_penalty,
            repetition=params.repetition_penalty,
        )


class SamplingArrays(NamedTuple):
    """Sampling parameters of a batch, an array ``[b]`` for each field of :class:`SamplingRow`."""

    seed: Int[Array, "b"]
    choice: Int[Array, "b"]
    temperature: Float[Array, "b"]
    top_p: Float[Array, "b"]
    top_k: Int[Array, "b"]
    min_p: Float[Array, "b"]
    presence: Float[Array, "b"]
    frequency: Float[Array, "b"]
    repetition: Float[Array, "b"]

    @classmethod
    def of(cls, params: SamplingParams, choice: int = 0, seed: int = 0) -> "SamplingArrays":
        """Device arrays of one row; ``seed`` is for requests without one."""
        row = SamplingRow.of(params, choice, seed)
        return jax.tree.map(jnp.asarray, cls.stack([row], 1))

    @classmethod
    def stack(cls, rows: Sequence[SamplingRow], size: int) -> "SamplingArrays":
        """Host arrays of rows, padded with greedy rows to ``size``."""
        padded = [*rows, *[SamplingRow()] * (size - len(rows))]
        arrays = {
            name: np.array([getattr(row, name) for row in padded], dtype)
            for name, dtype in _SAMPLING_DTYPES.items()
        }
        return cls(**arrays)  # type: ignore[arg-type]


_SAMPLING_DTYPES = {
    name: np.int32 if type(default) is int else np.float32
    for name, default in SamplingRow()._asdict().items()
}


def device_seed(seed: int) -> int:
    """Fold a seed of up to 64 bits into 31 bits; seeds that fit stay as they are.

    >>> device_seed(42), 0 <= device_seed(2**40) < 2**31
    (42, True)
    """
    if 0 <= seed < 2**31:
        return seed
    digest = hashlib.blake2b(seed.to_bytes(9, "big", signed=True), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def sample(
    logits: Float[Array, "b v"],
    sampling: SamplingArrays,
    position: Int[Array, ""] | Int[Array, "b"],
) -> Int[Array, "b"]:
    r"""Sample one token per row: ``argmax`` at temperature 0, else a draw from the truncated
    softmax.

    The draw is :math:`\arg\max_i (z_i / T + g_i)` with Gumbel noise ``g`` from the stream
    ``(seed, "sample", position, choice)``, so a request's draws depend on nothing else in the
    batch; its logits do in their last bits, see :mod:`ziggurat.serve.llm.runner`. A step in which
    no row asks for truncation searches nothing, and one whose rows are all greedy draws nothing.

    Args:
        logits: float32.
        sampling: what each row asks for.
        position: place in the sequence, from 0, of the token that is chosen.
    """
    positions = jnp.broadcast_to(position, sampling.seed.shape)
    best = _most_likely(logits)
    greedy = sampling.temperature == 0

    def draw(z: Array) -> Array:
        scaled = z / jnp.where(greedy, 1.0, sampling.temperature)[:, None]
        plain = (sampling.top_k == 0) & (sampling.top_p >= 1) & (sampling.min_p == 0)
        kept = jax.lax.cond(
            jnp.all(plain | greedy),
            lambda s: s,
            lambda s: jnp.where(
                kept_tokens(s, sampling.top_k, sampling.top_p, sampling.min_p), s, NEVER
            ),
            scaled,
        )
        keys = jax.vmap(_key)(sampling.seed, positions, sampling.choice)
        drawn = jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)
        return jnp.where(greedy, best, drawn)

    return jax.lax.cond(jnp.all(greedy), lambda z: best, draw, logits)


def _most_likely(logits: Float[Array, "b v"]) -> Int[Array, "b"]:
    """The first of the greatest. XLA's ``argmax`` takes twice as long on a CPU."""
    last = logits.shape[-1] - 1
    greatest = logits == logits.max(-1, keepdims=True)
    return jnp.where(greatest, jnp.arange(last + 1, dtype=jnp.int32)[None], last).min(-1)


def _key(seed: Array, position: Array, choice: Array) -> Array:
    return prng.stream(seed, "sample", step=position, index=choice)


def kept_tokens(
    scaled: Float[Array, "b v"],
    top_k: Int[Array, "b"],
    top_p: Float[Array, "b"],
    min_p: Float[Array, "b"],
) -> Bool[Array, "b v"]:
    """Mask of the tokens that may be drawn, after top-k, then top-p over the rest, then min-p.

    The order and the borders are those of transformers' warpers: top-k keeps all tokens equal to
    the k-th; top-p keeps a token if the more likely ones together are below ``top_p``; at least one
    token stays. Tokens that tie with the last one kept by top-p stay too.

    Args:
        scaled: logits divided by the temperature.
        top_k: number kept; 0: all.
        top_p: probability kept, in (0, 1].
        min_p: least probability relative to the most likely token.
    """
    vocab = scaled.shape[-1]
    k = jnp.where(top_k == 0, vocab, jnp.minimum(top_k, vocab))
    keys = _ordered(scaled)
    among = keys >= _greatest(lambda key: jnp.sum(keys >= key, axis=-1) >= k, k)
    weights = jax.nn.softmax(jnp.where(among, scaled, NEVER), axis=-1)

    def reaches(key: Array) -> Array:
        return jnp.sum(jnp.where(keys >= key, weights, 0.0), axis=-1) >= top_p

    inside = (keys >= _greatest(reaches, k)) | (top_p >= 1)[:, None]
    likely = scaled >= scaled.max(-1, keepdims=True) + jnp.log(min_p)[:, None]
    return among & inside & likely


def _ordered(values: Float[Array, "b v"]) -> UInt32[Array, "b v"]:
    """Numbers of which the greater belongs to the greater value."""
    bits = jax.lax.bitcast_convert_type(jnp.where(values == 0, 0.0, values), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    return jnp.where(bits & sign, ~bits, bits | sign)


def _greatest(holds: Callable[[Array], Array], rows: Array) -> Array:
    """The greatest number ``[b 1]`` for which ``holds``, which is true below some border and false
    above it: found bit by bit, in 32 passes over the vocabulary. A sort takes several times as long
    on a CPU."""

    def bit(index: Array, found: Array) -> Array:
        trial = found | (jnp.uint32(1) << (31 - index).astype(jnp.uint32))
        return jnp.where(holds(trial[:, None]), trial, found)

    return jax.lax.fori_loop(0, 32, bit, jnp.zeros(rows.shape, jnp.uint32))[:, None]


def log_probabilities(
    logits: Float[Array, "b v"], tokens: Int[Array, "b"], count: int = MAX_LOGPROBS
) -> tuple[Float[Array, "b"], Float[Array, "b top"], Int[Array, "b top"]]:
    """Log-probability of ``tokens`` under the model, and the ``count`` greatest with their ids.

    They are the model's own, before temperature and truncation.
    """
    scores = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(scores, tokens[:, None], axis=-1)[:, 0]
    top, ids = jax.lax.top_k(scores, min(count, scores.shape[-1]))
    return chosen, top, ids


def drawn_log_probabilities(
    logits: Float[Array, "b v"], tokens: Int[Array, "b"], temperature: Float[Array, "b"]
) -> Float[Array, "b"]:
    """Log-probability of ``tokens`` at each row's temperature (at 0 that of the model itself),
    before truncation: what a trainer needs to know of its sampler."""
    scaled = logits / jnp.where(temperature == 0, 1.0, temperature)[:, None]
    scores = jax.nn.log_softmax(scaled, axis=-1)
    return jnp.take_along_axis(scores, tokens[:, None], axis=-1)[:, 0]
