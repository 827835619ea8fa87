"""Running the model: weights, paged cache and the few compiled programs that work on them.

Programs of different numbers of rows may add up in different order, so a sequence's logits depend
on what runs beside it: in float32 in the last bits, in bfloat16 by about 1 in 100 of a logit.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ziggurat.kernels.placement import platform
from ziggurat.models import LanguageModel, Params, unstacked
from ziggurat.models.unstacked import Unstacked
from ziggurat.serve.llm import history
from ziggurat.serve.llm.buckets import Buckets, Shape
from ziggurat.serve.llm.generation import Choice
from ziggurat.serve.llm.history import History
from ziggurat.serve.llm.huge_pages import in_huge_pages
from ziggurat.serve.llm.paged import Paged, Pools
from ziggurat.serve.llm.programs import Programs
from ziggurat.serve.llm.sampling import (
    GREEDY,
    MAX_BIASES,
    Knobs,
    drawn_log_probabilities,
    log_probabilities,
    sample,
)
from ziggurat.serve.llm.settings import CacheDimensions


class Logprobs(NamedTuple):
    """Log-probabilities of a row's token, and of the most likely ones with their ids."""

    chosen: float
    top: list[float]
    ids: list[int]


class Drawn(NamedTuple):
    """What a step chose, a place for each lane; empty if none has come to its end."""

    tokens: list[int]
    """Of meaning only where the lane has no further tokens to read."""
    logprobs: dict[int, Logprobs]
    """By index, of lanes that ask for them."""
    scores: list[float] | None
    """Log-probabilities at the lanes' temperatures, if the runner tells them."""


class Flight(NamedTuple):
    """A step that has been handed to the device, and what will come of it."""

    shape: Shape
    ready: list[bool]
    """Which lanes have no further tokens to read, so that their draw counts."""
    logits: Array
    tokens: Array
    following: tuple[Array, Array]
    """The same as input of another step, ``[rows, 1]``, and what is in the cache before it."""
    inputs: "Inputs"
    """On the device."""
    tables: np.ndarray
    """Its tables, here."""
    knobs: Knobs


class Inputs(NamedTuple):
    """What a step is told of its rows besides how they choose."""

    tokens: Any
    """``[rows, width]``."""
    start: Any
    """Tokens in the cache before these."""
    counts: Any
    """New tokens."""
    tables: Any
    """``[rows, pages]``: blocks of the cache."""


class ModelRunner:
    """Steps of a model over rows of tokens, all state but the lanes' own on one device.

    Args:
        model: the model.
        params: its parameters; copied, layer by layer. Those sharded over several devices are
            gathered.
        cache: the cache's dimensions.
        buckets: the shapes of steps.
        programs: compiles them.
        scores: tell for each token with which log-probability it was drawn.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: Params,
        cache: CacheDimensions,
        buckets: Buckets,
        programs: Programs,
        scores: bool = False,
    ):
        self.model, self.buckets, self.programs = model, buckets, programs
        self._dims, self._vocab, self._scores = cache, model.decoder.vocab_size, scores
        self.load(params)
        self._cache = self._empty()
        self._history: History | None = None
        self._stays: dict[int, object] = {}
        self._declare()

    def load(self, params: Params) -> None:
        """Go on with other weights of the same shapes. On a CPU they are copied, see
        :mod:`ziggurat.serve.llm.huge_pages`, and laid out for our kernels. Elsewhere stacked layers
        are copied apart, by programs that are compiled once, and all other arrays are taken as they
        are."""
        here = jax.tree.map(_on_one_device, params)
        if platform() == "cpu":
            pack = self.model.precision.compute_dtype == jnp.float32
            apart = Unstacked.of(self.model, jax.tree.map(np.asarray, here), pack=pack)
            self._weights = in_huge_pages(apart)
        else:
            self._weights = Unstacked.of(self.model, here)

    def start(self, shape: Shape, lanes: Sequence[Choice], counts: Sequence[int]) -> Flight:
        """Have the next ``counts`` tokens of each lane read and the one after chosen.

        Args:
            shape: a shape of the buckets that holds them.
            lanes: whose; they have blocks for these tokens.
            counts: how many of each.
        """
        ready = [count == lane.pending for lane, count in zip(lanes, counts)]
        drawing = [lane if is_ready else None for lane, is_ready in zip(lanes, ready)]
        knobs = Knobs.stack([lane.knobs if lane else GREEDY for lane in drawing], shape.rows)
        shaped = any(lane.shaped for lane in drawing if lane is not None)
        first = Knobs.stack([], shape.rows) if shaped else knobs  # a draw that is not used is cheap
        inputs = self._inputs(shape, lanes, counts)
        placed, knobs_there = jax.device_put((inputs, first))
        flight = self._fly(shape, placed, inputs.tables, knobs_there, ready)
        if shaped:
            tokens = self._sample_shaped(drawing, flight.logits, knobs)
            flight = flight._replace(tokens=tokens, knobs=knobs)
        return flight

    def follow(self, flight: Flight, lanes: Sequence[Choice]) -> Flight:
        """Have the tokens read that ``flight`` draws, before they are known here.

        Args:
            flight: a step in which each of the lanes read the last token that it has.
            lanes: the same; they have blocks for one token more.
        """
        tables, there = self._tables(flight.shape, lanes), flight.inputs.tables
        if not np.array_equal(tables, flight.tables):
            there = jax.device_put(tables)
        inputs = Inputs(*flight.following, flight.inputs.counts, there)
        return self._fly(flight.shape, inputs, tables, flight.knobs, flight.ready)

    def finish(self, flight: Flight, lanes: Sequence[Choice]) -> Drawn:
        """Wait for a step; what it chose, a place for each lane."""
        if not any(flight.ready):
            return Drawn([], {}, None)
        rows, logits, tokens = flight.shape.rows, flight.logits, flight.tokens
        scores = self._scored(rows, lanes, logits, tokens) if self._scores else None
        wanted = [lane.generation.params.logprobs is not None for lane in lanes]
        asked = [row for row in range(len(lanes)) if wanted[row] and flight.ready[row]]
        found = self._logprobs(rows, asked, logits, tokens) if asked else {}
        return Drawn(np.asarray(tokens)[: len(lanes)].tolist(), found, scores)

    def can_follow(self, lane: Choice) -> bool:
        """Whether nothing of a lane's next token need be known here for the one after."""
        return not (self._scores or lane.shaped or lane.generation.params.logprobs is not None)

    def _fly(
        self, shape: Shape, inputs: Inputs, tables: np.ndarray, knobs: Knobs, ready: list[bool]
    ) -> Flight:
        step = self.programs[f"step {shape}"]
        self._cache, logits, tokens, following = step(self._weights, self._cache, inputs, knobs)
        return Flight(shape, ready, logits, tokens, following, inputs, tables, knobs)

    def _logprobs(
        self, size: int, rows: Sequence[int], logits: Array, tokens: Array
    ) -> dict[int, Logprobs]:
        found = self.programs[f"logprobs {size}"](logits, tokens)
        chosen, top, ids = (np.asarray(part) for part in found)
        return {r: Logprobs(float(chosen[r]), top[r].tolist(), ids[r].tolist()) for r in rows}

    def _scored(
        self, rows: int, lanes: Sequence[Choice], logits: Array, tokens: Array
    ) -> list[float]:
        temperatures = np.zeros(rows, np.float32)
        temperatures[: len(lanes)] = [lane.generation.params.temperature for lane in lanes]
        scores = self.programs[f"scores {rows}"](logits, tokens, temperatures)
        return np.asarray(scores)[: len(lanes)].tolist()

    def _inputs(self, shape: Shape, lanes: Sequence[Choice], counts: Sequence[int]) -> Inputs:
        tokens = np.zeros(shape, np.int32)
        start, new = np.zeros((2, shape.rows), np.int32)
        for row, (lane, count) in enumerate(zip(lanes, counts)):
            tokens[row, :count] = lane.tokens[lane.cached : lane.cached + count]
            start[row], new[row] = lane.cached, count
        return Inputs(tokens, start, new, self._tables(shape, lanes))

    def _tables(self, shape: Shape, lanes: Sequence[Choice]) -> np.ndarray:
        tables = np.zeros((shape.rows, self._dims.width), np.int32)
        for row, lane in enumerate(lanes):
            assert lane.table is not None
            tables[row] = lane.table
        return tables

    def _sample_shaped(
        self, drawing: Sequence[Choice | None], logits: Array, knobs: Knobs
    ) -> Array:
        rows = logits.shape[0]
        positions = np.zeros(rows, np.int32)
        words = np.full((rows, -(-self._vocab // history.WORD)), 0xFFFFFFFF, np.uint32)
        slots = np.full(rows, self.buckets.max_running, np.int32)
        for row, lane in enumerate(drawing):
            if lane is None:
                continue
            positions[row] = len(lane.tokens)
            if (mask := lane.allowed()) is not None:
                words[row] = mask
            if lane.keeps_history:
                slots[row] = self._slot(lane)
        kept = self._kept()
        program = self.programs[f"sample shaped {rows}"]
        self._history, tokens = program(kept, logits, slots, knobs, words, positions)
        return tokens

    def _slot(self, lane: Choice) -> int:
        """The lane's row of the history, written if it has just begun to run."""
        slot = lane.slot
        assert slot is not None
        if self._stays.get(slot) is not lane.stay:
            tokens = np.zeros(self._dims.width * self._dims.block_size, np.int32)
            tokens[: len(lane.tokens)] = lane.tokens
            sizes = np.int32(len(lane.generation.prompt)), np.int32(len(lane.tokens))
            bias = history.bias_of(lane.generation.params, self._vocab)
            load = self.programs["load history"]
            self._history = load(self._kept(), np.int32(slot), tokens, *sizes, bias)
            self._stays[slot] = lane.stay
        return slot

    def _kept(self) -> History:
        if self._history is None:
            self._history = History.empty(self.buckets.max_running, self._vocab)
        return self._history

    def _empty(self) -> Pools:
        shapes = [layer.block.attention.cache for layer in self.model.decoder.layers]
        dtype = self.model.precision.compute_dtype
        return Pools.empty(shapes, self._dims.blocks + 1, self._dims.block_size, dtype)

    def _declare(self) -> None:
        """Name every program there is."""
        width, vocab = self._dims.width, self._vocab

        def array(*shape: int, dtype: type = np.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype)

        for shape in self.buckets.shapes:
            rows = shape.rows
            inputs = Inputs(array(*shape), array(rows), array(rows), array(rows, width))
            arguments = (self._weights, self._cache, inputs, Knobs.stack([], rows))
            self.programs.add(f"step {shape}", self._step, *arguments, donate=1)
        kept = jax.eval_shape(lambda: History.empty(self.buckets.max_running, vocab))
        for rows in self.buckets.rows:
            logits, each = array(rows, vocab, dtype=np.float32), array(rows)
            knobs = Knobs.stack([], rows)
            words = array(rows, -(-vocab // history.WORD), dtype=np.uint32)
            shaped = (kept, logits, each, knobs, words, each)
            self.programs.add(f"sample shaped {rows}", history.sample_shaped, *shaped, donate=0)
            self.programs.add(f"logprobs {rows}", log_probabilities, logits, each)
            if self._scores:
                heat = array(rows, dtype=np.float32)
                self.programs.add(f"scores {rows}", drawn_log_probabilities, logits, each, heat)
        bias = array(MAX_BIASES), array(MAX_BIASES, dtype=np.float32)
        tokens = array(width * self._dims.block_size)
        row = (kept, array(), tokens, array(), array(), bias)
        self.programs.add("load history", history.load, *row, donate=0)

    def _step(
        self, weights: Unstacked, cache: Pools, inputs: Inputs, knobs: Knobs
    ) -> tuple[
        Pools, Float[Array, "b v"], Int[Array, "b"], tuple[Int[Array, "b 1"], Int[Array, "b"]]
    ]:
        """The cache with the new tokens, logits after each row's last, and the token that is drawn
        from them, twice: to be looked at, and as input of the step that follows."""
        tokens, start, counts, tables = inputs
        context = Paged(tables, start, counts)
        positions = context.positions(tokens.shape[1])
        hidden, cache = unstacked.hidden(self.model, weights, tokens, positions, context, cache)
        last = jnp.maximum(counts - 1, 0)
        newest = hidden[jnp.arange(tokens.shape[0]), last]
        logits = unstacked.project(self.model, weights, newest)
        drawn = sample(logits, knobs, start + counts)
        return cache, logits, drawn, (drawn[:, None], start + counts)


def _on_one_device(leaf: Any) -> Any:
    spread = isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
    return jax.device_put(leaf, jax.devices()[0]) if spread else leaf
