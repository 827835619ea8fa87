"""Sampling parameters of a request, and the sampler that runs on the device.

>>> import jax, jax.numpy as jnp
>>> logits = jnp.array([[0.0, 3.0, 1.0]])
>>> sample(logits, SamplingArrays.of(SamplingParams(temperature=0.0)), jnp.array(7)).tolist()
[1]
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from ziggurat.core import prng
from ziggurat.core.registry import Registry
from ziggurat.serve.errors import RequestError
from ziggurat.serve.llm.constraint import Constraint

MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_BIASES = 300
MAX_BAD_WORDS = 256
MAX_BAD_WORD = 1000
NEVER = -math.inf


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParameter:
    """Declaration of a sampling parameter.

    The field of OpenAI's requests, the check of its values, the array ``[b]`` that the sampler gets
    and the reference page all follow from it. A plugin registers one with ``warp`` in
    :data:`SAMPLING_PARAMETERS`.

    >>> import jax.numpy as jnp
    >>> def top_a(scaled, a):  # keeps tokens with p >= a * max(p) ** 2
    ...     p = jax.nn.softmax(scaled, axis=-1)
    ...     best = p.max(-1, keepdims=True)
    ...     return jnp.where(p >= jnp.minimum(a[:, None] * best**2, best), scaled, NEVER)
    >>> declared = SamplingParameter(
    ...     default=0.0, good=lambda a: 0 <= a <= 1, expected="a number in [0, 1]", warp=top_a
    ... )
    """

    default: float | int | bool
    """Value of requests that give none; it changes nothing."""
    good: Callable[[Any], bool]
    """Whether a value is in range."""
    expected: str
    """The range in words, for errors and the reference page."""
    on_device: bool = True
    """Whether the sampler gets it, as a number for each row of the batch."""
    recommended: bool = False
    """Whether a model's ``generation_config.json`` may set it, as in vLLM."""
    warp: Callable[[Float[Array, "b v"], Float[Array, "b"]], Float[Array, "b v"]] | None = None
    """Changes logits, divided by the temperature, by each row's value. It runs before top-k, and
    only in steps in which a row that draws has another value than the default. Built-in parameters
    have none: the sampler itself applies them."""


SAMPLING_PARAMETERS: Registry[SamplingParameter] = Registry("sampling parameter")
"""Parameters besides the fields of :class:`SamplingParams`. Register one before the first request
is made and the first engine built: engines compile them in."""


@functools.cache
def registered_parameters() -> dict[str, SamplingParameter]:
    """Registered sampling parameters by name, as they were at the first call.

    Raises:
        ValueError: one has a built-in parameter's name, or no ``warp``.
    """
    found = {name: SAMPLING_PARAMETERS[name] for name in SAMPLING_PARAMETERS}
    for name, parameter in found.items():
        if name in {field.name for field in dataclasses.fields(SamplingParams)}:
            raise ValueError(f"sampling parameter {name!r} is built in already")
        if parameter.warp is None:
            raise ValueError(f"sampling parameter {name!r} has no warp: nothing would apply it")
    return found


def _parameter(
    default: float | int | bool,
    good: Callable[[Any], bool],
    expected: str,
    *,
    on_device: bool = True,
    recommended: bool = False,
) -> Any:
    """A field of :class:`SamplingParams` with its declaration."""
    declared = SamplingParameter(
        default=default, good=good, expected=expected, on_device=on_device, recommended=recommended
    )
    return dataclasses.field(default=default, metadata={"declared": declared})


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
    temperature: float | int = _parameter(
        1.0, lambda t: 0 <= t <= 100, "a number in [0, 100]", recommended=True
    )
    """Divides the logits; 0 takes the most likely token always (greedy)."""
    top_p: float | int = _parameter(
        1.0, lambda p: 0 < p <= 1, "a number in (0, 1]", recommended=True
    )
    """Keep the smallest set of most likely tokens whose probabilities reach this sum."""
    top_k: int = _parameter(
        0, lambda k: -1 <= k < 2**31, "a number >= 1, or 0 for all tokens", recommended=True
    )
    """Keep this many most likely tokens; 0 or -1: all."""
    min_p: float | int = _parameter(
        0.0, lambda p: 0 <= p <= 1, "a number in [0, 1]", recommended=True
    )
    """Keep tokens at least this fraction as likely as the most likely one."""
    presence_penalty: float | int = _parameter(0.0, lambda x: -2 <= x <= 2, "a number in [-2, 2]")
    """Taken off the logits of tokens that the output holds."""
    frequency_penalty: float | int = _parameter(0.0, lambda x: -2 <= x <= 2, "a number in [-2, 2]")
    """Taken off the logits of tokens for each time that the output holds them."""
    repetition_penalty: float | int = _parameter(
        1.0, lambda x: 0 < x <= 100, "a number in (0, 100]", recommended=True
    )
    """Divides the positive logits of tokens that prompt or output hold, and multiplies the negative
    ones."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of an id and what is added to its logit, before the penalties."""
    allowed_token_ids: tuple[int, ...] = ()
    """Ids that may be generated, end ids included; default: all. A constraint that allows none of
    them goes before."""
    bad_words: tuple[str, ...] = ()
    """Texts that are not generated: the last token of a word's tokens may not follow the others."""
    min_tokens: int = _parameter(
        0, lambda x: x >= 0, "a number from 0 to max_tokens", on_device=False
    )
    """End ids, the model's own and ``stop_token_ids``, cannot come before this many tokens."""
    constraint: Callable[[], Constraint] | None = None
    """Makes what constrains a generation; called for each of the ``n``."""
    seed: int | None = None
    """The draws are a function of seed and position; default: a fresh seed per request. In float32
    the same seed gives the same tokens whatever else is served, unless two are equal to the last
    bits; in bfloat16 answers may differ with the load."""
    stop: tuple[str, ...] = ()
    """Texts that end the generation and are not part of it."""
    include_stop_str_in_output: bool = _parameter(
        False, lambda x: True, "true or false", on_device=False
    )
    """Let the stop text be part of the output, and the text of a stop id too."""
    skip_special_tokens: bool = _parameter(True, lambda x: True, "true or false", on_device=False)
    """Leave special tokens out of the text."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end the generation, besides the model's own."""
    ignore_eos: bool = _parameter(False, lambda x: True, "true or false", on_device=False)
    """Continue after the model's own end ids."""
    logprobs: int | None = None
    """Report each token's log-probability, and those of this many most likely tokens."""
    prompt_logprobs: int | None = None
    """Report the log-probabilities of the prompt's tokens but the first, which none precedes, and
    those of this many most likely tokens. The prompt is computed whole, without the prefix
    cache."""
    n: int = _parameter(
        1, lambda n: 1 <= n <= MAX_CHOICES, f"a number from 1 to {MAX_CHOICES}", on_device=False
    )
    """Generations per prompt."""
    extra: Mapping[str, float | int] = dataclasses.field(default_factory=dict)
    """Values of registered parameters, by name, see :data:`SAMPLING_PARAMETERS`."""

    def __post_init__(self):
        def check(good: bool, name: str, expected: str) -> None:
            if not good:
                found = getattr(self, name)
                raise RequestError(name, found=repr(found), expected=expected, param=name)

        for name, declared in BUILT_IN.items():
            check(declared.good(getattr(self, name)), name, declared.expected)
        self._check_extra()
        limit, least, seed = self.max_tokens, self.min_tokens, self.seed
        check(limit is None or limit >= 1, "max_tokens", "a number >= 1")
        check(least <= (limit or least), "min_tokens", BUILT_IN["min_tokens"].expected)
        self._check_bias(check)
        check(seed is None or -(2**63) <= seed < 2**64, "seed", "a 64-bit integer")
        check(len(self.stop) <= MAX_STOPS, "stop", f"at most {MAX_STOPS} texts")
        check(all(self.stop), "stop", "texts that are not empty")
        check(all(i >= 0 for i in self.stop_token_ids), "stop_token_ids", "ids >= 0")
        check(all(i >= 0 for i in self.allowed_token_ids), "allowed_token_ids", "ids >= 0")
        check(len(self.bad_words) <= MAX_BAD_WORDS, "bad_words", f"at most {MAX_BAD_WORDS} texts")
        short = all(word.strip() and len(word) <= MAX_BAD_WORD for word in self.bad_words)
        expected = f"texts of at most {MAX_BAD_WORD} characters that are not empty"
        check(short, "bad_words", expected)
        for name in ("logprobs", "prompt_logprobs"):
            top = getattr(self, name)
            in_range = top is None or 0 <= top <= MAX_LOGPROBS
            check(in_range, name, f"a number from 0 to {MAX_LOGPROBS}")

    def _check_extra(self) -> None:
        known = registered_parameters() if self.extra else {}
        for name, value in self.extra.items():
            if name not in known:
                expected = f"a registered sampling parameter: {', '.join(known) or 'there is none'}"
                raise RequestError("extra", found=repr(name), expected=expected, param=name)
            if not known[name].good(value):
                expected = known[name].expected
                raise RequestError(name, found=repr(value), expected=expected, param=name)

    def _check_bias(self, check: Callable[[bool, str, str], None]) -> None:
        bias = self.logit_bias
        check(len(bias) <= MAX_BIASES, "logit_bias", f"at most {MAX_BIASES} ids")
        check(len({i for i, _ in bias}) == len(bias), "logit_bias", "each id once")
        good = all(i >= 0 and -100 <= value <= 100 for i, value in bias)
        check(good, "logit_bias", "ids >= 0 with numbers in [-100, 100]")


BUILT_IN: dict[str, SamplingParameter] = {
    field.name: field.metadata["declared"]
    for field in dataclasses.fields(SamplingParams)
    if "declared" in field.metadata
}
"""Declarations of the built-in parameters that requests give as they are, by field."""
_GREEDY = {name: p.default for name, p in BUILT_IN.items() if p.on_device} | {"temperature": 0.0}


class SamplingRow(NamedTuple):
    """Sampling parameters of one sequence as numbers; the defaults are greedy, as for padding."""

    seed: int = 0
    """Seed of 31 bits, see :func:`device_seed`."""
    choice: int = 0
    """Index of the sequence among the ``n`` of its request."""
    numbers: Mapping[str, float | int] = _GREEDY
    """Values of the parameters that the sampler gets, by name; others have their defaults."""

    @classmethod
    def of(cls, params: SamplingParams, choice: int = 0, seed: int = 0) -> "SamplingRow":
        """Numbers of a request's parameters; ``seed`` is for requests without one."""
        numbers = {name: getattr(params, name) for name in _GREEDY}
        return cls(
            seed=device_seed(params.seed if params.seed is not None else seed),
            choice=choice,
            numbers={**numbers, "top_k": max(params.top_k, 0), **params.extra},
        )


class SamplingArrays(NamedTuple):
    """Sampling parameters of a batch, as arrays."""

    seed: Int[Array, "b"]
    choice: Int[Array, "b"]
    numbers: dict[str, Array]
    """An array ``[b]`` for each parameter that the sampler gets, by name."""

    @classmethod
    def of(cls, params: SamplingParams, choice: int = 0, seed: int = 0) -> "SamplingArrays":
        """Device arrays of one row; ``seed`` is for requests without one."""
        row = SamplingRow.of(params, choice, seed)
        return jax.tree.map(jnp.asarray, cls.stack([row], 1))

    @classmethod
    def stack(cls, rows: Sequence[SamplingRow], size: int) -> "SamplingArrays":
        """Host arrays of rows, padded with greedy rows to ``size``."""
        padded = [*rows, *[SamplingRow()] * (size - len(rows))]
        defaults = _GREEDY | {name: p.default for name, p in registered_parameters().items()}
        numbers = {
            name: np.array(
                [row.numbers.get(name, default) for row in padded],
                np.int32 if type(default) is int else np.float32,
            )
            for name, default in defaults.items()
        }
        seeds = np.array([row.seed for row in padded], np.int32)
        choices = np.array([row.choice for row in padded], np.int32)
        return cls(seeds, choices, numbers)  # type: ignore[arg-type]


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
    best, numbers = _most_likely(logits), sampling.numbers
    greedy = numbers["temperature"] == 0
    top_k, top_p, min_p = (numbers[name] for name in ("top_k", "top_p", "min_p"))

    def draw(z: Array) -> Array:
        scaled = z / jnp.where(greedy, 1.0, numbers["temperature"])[:, None]
        plain = (top_k == 0) & (top_p >= 1) & (min_p == 0)
        kept = jax.lax.cond(
            jnp.all(plain | greedy),
            lambda s: s,
            lambda s: jnp.where(kept_tokens(s, top_k, top_p, min_p), s, NEVER),
            _warped(scaled, numbers, greedy),
        )
        keys = jax.vmap(_key)(sampling.seed, positions, sampling.choice)
        drawn = jax.vmap(jax.random.categorical)(keys, kept).astype(jnp.int32)
        return jnp.where(greedy, best, drawn)

    return jax.lax.cond(jnp.all(greedy), lambda z: best, draw, logits)


def _warped(
    scaled: Float[Array, "b v"], numbers: Mapping[str, Array], greedy: Bool[Array, "b"]
) -> Float[Array, "b v"]:
    """Logits after the registered parameters, in the order of their names."""
    for name, declared in registered_parameters().items():
        assert declared.warp is not None, "registered_parameters() asks for it"
        idle = (numbers[name] == declared.default) | greedy
        scaled = jax.lax.cond(jnp.all(idle), lambda z, _: z, declared.warp, scaled, numbers[name])
    return scaled


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
