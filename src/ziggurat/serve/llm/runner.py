"""Model runner: weights, key/value cache and the few compiled programs that use them.

Programs of different numbers of rows may add up in different order, so a sequence's logits depend
on what runs beside it: in float32 in the last bits, in bfloat16 by about 1 in 100 of a logit.
"""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ziggurat.kernels.placement import platform
from ziggurat.mesh import Layout
from ziggurat.models import LanguageModel, Params, unstacked
from ziggurat.models.divisible import divisible, divisible_params
from ziggurat.models.quantized import formats_of, quantized
from ziggurat.models.unstacked import Unstacked
from ziggurat.models.vision_language_model import ImageSpec
from ziggurat.nn.layer_state import Storage, stored_as
from ziggurat.nn.multimodal import MultimodalInputs
from ziggurat.serve.llm import history
from ziggurat.serve.llm.buckets import Buckets, Shape
from ziggurat.serve.llm.history import History
from ziggurat.serve.llm.huge_pages import in_huge_pages
from ziggurat.serve.llm.kv_cache import CacheSizes, KVCache, Paged
from ziggurat.serve.llm.programs import Programs
from ziggurat.serve.llm.prompt_images import ImageInputs
from ziggurat.serve.llm.prompt_logprobs import PromptLogprobs, prompt_log_probabilities
from ziggurat.serve.llm.request import RequestSequence
from ziggurat.serve.llm.sampling import (
    MAX_BIASES,
    SamplingArrays,
    SamplingRow,
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


class SamplerOutput(NamedTuple):
    """Sampled tokens, one for each sequence; empty if no sequence is fully computed."""

    tokens: list[int]
    """Valid only for sequences that are fully computed."""
    logprobs: dict[int, Logprobs]
    """By row, of the sequences that ask for them."""
    scores: list[float] | None
    """Log-probabilities at the sequences' temperatures, if the runner reports them."""
    prompt: PromptLogprobs | None = None
    """Log-probabilities of the prompt's tokens that follow the computed ones, of a step of one row
    that asks for them."""


class StepHandle(NamedTuple):
    """Handle of a step in flight: handed to the device, its results not yet on the host."""

    shape: Shape
    ready: list[bool]
    """Which sequences are fully computed by this step, so that their sampled token counts."""
    logits: Array
    tokens: Array
    next_inputs: tuple[Array, Array]
    """Sampled tokens ``[rows, 1]`` and computed tokens ``[rows]``: inputs of a chained step."""
    inputs: "Inputs"
    """Inputs of the step, on the device."""
    tables: np.ndarray
    """Block tables of the step, on the host."""
    sampling: SamplingArrays
    hidden: Array | None = None
    """Hidden states of the only row's tokens ``[1, width, d]``; of several rows none."""
    scored: tuple[Any, int] = (None, 0)
    """Log-probabilities of the prompt's tokens that come next, in flight, and of how many."""


class Inputs(NamedTuple):
    """Inputs of a step, except for the sampling parameters."""

    tokens: Any
    """New tokens ``[rows, width]``."""
    start: Any
    """Computed tokens ``[rows]``, before this step."""
    counts: Any
    """Number of new tokens ``[rows]``."""
    tables: Any
    """Block tables ``[rows, pages]``."""
    slots: Any
    """Slots of the sequences ``[rows]``."""
    offsets: Any = None
    """How much later than their numbers in the sequence the tokens of each row stand for the rotary
    embedding ``[rows]``; ``None``: the model's positions have one axis. A step with images has
    positions for each token instead."""


class ModelRunner:
    """Runs the steps of a model, with weights, cache and sampling state on one device or a mesh.

    On a mesh weights and states are sharded by their logical axes and never gathered; what tells
    the rows apart and what is sampled is on every device.

    Args:
        model: the model.
        params: its parameters; copied, layer by layer. Without a mesh, those sharded over several
            devices are gathered.
        cache: the cache's dimensions.
        buckets: the shapes of steps.
        programs: compiles them.
        scores: report the log-probability with which each token was drawn.
        storage: how keys and values are kept.
        mesh: devices to shard over; default the first one alone.
        images: what images of prompts add to the model's inputs; ``None``: prompts hold none.
    """

    def __init__(
        self,
        model: LanguageModel,
        params: Params,
        cache: CacheDimensions,
        buckets: Buckets,
        programs: Programs,
        scores: bool = False,
        *,
        storage: Storage = "compute",
        mesh: Layout | None = None,
        images: ImageSpec | None = None,
    ):
        self._images, self._axes = images, 1 if images is None else images.position_axes
        self.buckets, self.programs = buckets, programs
        self._given = model
        self.model = model if mesh is None else divisible(model, mesh)
        self._storage: Storage = storage
        self._mesh = mesh
        self._everywhere = None if mesh is None else mesh.replicated()
        self._dims, self._vocab, self._scores = cache, model.decoder.vocab_size, scores
        self.load(params)
        self._cache = self._empty()
        self._history: History | None = None
        self._history_owner: dict[int, int | None] = {}
        self._declare()

    def load(self, params: Params) -> None:
        """Replace the weights with others of equal shapes.

        On a CPU they are copied into huge pages, see :mod:`ziggurat.serve.llm.huge_pages`, and laid
        out for the C++ kernels. Elsewhere stacked layers are copied apart, by programs that compile
        once, and all other arrays are used without a copy.
        """
        if self._mesh is not None:
            formats = formats_of(params)  # the models may be those of the float weights
            given, made = (
                model if formats == formats_of(model.abstract) else quantized(model, formats)
                for model in (self._given, self.model)
            )
            params = divisible_params(given, made, params, self._mesh)
            self._weights = Unstacked.of(self.model, params)
            return
        here = jax.tree.map(_on_one_device, params)
        if platform() == "cpu":
            pack = self.model.precision.compute_dtype == jnp.float32
            apart = Unstacked.of(self.model, jax.tree.map(np.asarray, here), pack=pack)
            self._weights = in_huge_pages(apart)
        else:
            self._weights = Unstacked.of(self.model, here)

    def start(
        self, shape: Shape, seqs: Sequence[RequestSequence], counts: Sequence[int]
    ) -> StepHandle:
        """Start a step: compute the next ``counts`` tokens of each sequence, and sample one more.

        Args:
            shape: a shape of the buckets that holds them.
            seqs: sequences with blocks for these tokens.
            counts: number of tokens of each sequence.
        """
        ready = [count == seq.pending for seq, count in zip(seqs, counts)]
        drawing = [seq if is_ready else None for seq, is_ready in zip(seqs, ready)]
        sampling = SamplingArrays.stack(
            [seq.sampling if seq else SamplingRow() for seq in drawing], shape.rows
        )
        shaped = any(seq.shaped for seq in drawing if seq is not None)
        first = (
            SamplingArrays.stack([], shape.rows) if shaped else sampling
        )  # a draw that is not used is cheap
        inputs = self._inputs(shape, seqs, counts)
        placed, arrays = jax.device_put((inputs, first), self._everywhere)
        images = self._image_inputs(shape, seqs, counts)
        step = self._launch(shape, placed, inputs.tables, arrays, ready, images)
        if shaped:
            tokens = self._sample_shaped(drawing, step.logits, sampling)
            step = step._replace(tokens=tokens, sampling=sampling)
        if step.hidden is not None and (behind := seqs[0].unscored(counts[0])):
            targets = np.zeros(shape.tokens, np.int32)
            targets[: len(behind)] = behind
            program = self.programs[f"prompt logprobs {shape.tokens}"]
            found = program(self._weights, step.hidden, targets)
            step = step._replace(scored=(found, len(behind)))
        return step._replace(hidden=None)

    def chain_step(self, step: StepHandle, seqs: Sequence[RequestSequence]) -> StepHandle:
        """Start the step after ``step`` before its sampled tokens are on the host.

        Args:
            step: a step that fully computes each of the sequences.
            seqs: sequences of ``step``, each with a block for one more token.
        """
        tables, there = self._tables(step.shape, seqs), step.inputs.tables
        if not np.array_equal(tables, step.tables):
            there = jax.device_put(tables, self._everywhere)
        before = step.inputs
        inputs = Inputs(*step.next_inputs, before.counts, there, before.slots, before.offsets)
        return self._launch(step.shape, inputs, tables, step.sampling, step.ready)

    def collect(self, step: StepHandle, seqs: Sequence[RequestSequence]) -> SamplerOutput:
        """Wait for a step, and return its sampled tokens."""
        prompt, (scored, count) = None, step.scored
        if scored is not None:
            prompt = PromptLogprobs(*scored).cut(count, seqs[0].request.params.prompt_logprobs or 0)
        if not any(step.ready):
            return SamplerOutput([], {}, None, prompt)
        rows, logits, tokens = step.shape.rows, step.logits, step.tokens
        scores = self._scored(rows, seqs, logits, tokens) if self._scores else None
        wanted = [seq.request.params.logprobs is not None for seq in seqs]
        chosen = [row for row in range(len(seqs)) if wanted[row] and step.ready[row]]
        found = self._logprobs(rows, chosen, logits, tokens) if chosen else {}
        return SamplerOutput(np.asarray(tokens)[: len(seqs)].tolist(), found, scores, prompt)

    def can_chain(self, seq: RequestSequence) -> bool:
        """Whether a step may follow before the sequence's next token is on the host."""
        return not (self._scores or seq.shaped or seq.request.params.logprobs is not None)

    def _launch(
        self,
        shape: Shape,
        inputs: Inputs,
        tables: np.ndarray,
        sampling: SamplingArrays,
        ready: list[bool],
        images: ImageInputs | None = None,
    ) -> StepHandle:
        program = self.programs[f"step {shape}" if images is None else f"image step {shape}"]
        more = () if images is None else (images,)
        self._cache, logits, tokens, next_inputs, hidden = program(
            self._weights, self._cache, inputs, sampling, *more
        )
        given = inputs, tables, sampling, hidden
        return StepHandle(shape, ready, logits, tokens, next_inputs, *given)

    def _logprobs(
        self, size: int, rows: Sequence[int], logits: Array, tokens: Array
    ) -> dict[int, Logprobs]:
        found = self.programs[f"logprobs {size}"](logits, tokens)
        chosen, top, ids = (np.asarray(part) for part in found)
        return {r: Logprobs(float(chosen[r]), top[r].tolist(), ids[r].tolist()) for r in rows}

    def _scored(
        self, rows: int, seqs: Sequence[RequestSequence], logits: Array, tokens: Array
    ) -> list[float]:
        temperatures = np.zeros(rows, np.float32)
        temperatures[: len(seqs)] = [seq.request.params.temperature for seq in seqs]
        scores = self.programs[f"scores {rows}"](logits, tokens, temperatures)
        return np.asarray(scores)[: len(seqs)].tolist()

    def _inputs(
        self, shape: Shape, seqs: Sequence[RequestSequence], counts: Sequence[int]
    ) -> Inputs:
        tokens = np.zeros(shape, np.int32)
        start, new, offsets = np.zeros((3, shape.rows), np.int32)
        slots = np.full(shape.rows, self.buckets.max_running, np.int32)
        for row, (seq, count) in enumerate(zip(seqs, counts)):
            assert seq.slot is not None, "it runs"
            slots[row] = seq.slot
            tokens[row, :count] = seq.tokens[seq.computed : seq.computed + count]
            start[row], new[row] = seq.computed, count
            if seq.images is not None:
                offsets[row] = seq.images.offset_at(seq.computed)
        tables = self._tables(shape, seqs)
        return Inputs(tokens, start, new, tables, slots, offsets if self._axes > 1 else None)

    def _image_inputs(
        self, shape: Shape, seqs: Sequence[RequestSequence], counts: Sequence[int]
    ) -> ImageInputs | None:
        """Additions of images to a step, on the device; ``None``: its tokens are text."""
        dtype = self.model.precision.compute_dtype
        found = [
            seq.images.arrays(seq.computed, count, shape.tokens, dtype)
            for seq, count in zip(seqs, counts)
            if seq.images is not None and seq.images.within(seq.computed, count)
        ]
        if not found:
            return None
        assert len(seqs) == 1, "a prompt's chunk with images runs alone"
        return jax.device_put(found[0], self._everywhere)

    def _tables(self, shape: Shape, seqs: Sequence[RequestSequence]) -> np.ndarray:
        tables = np.zeros((shape.rows, self._dims.width), np.int32)
        for row, seq in enumerate(seqs):
            assert seq.block_table is not None
            tables[row] = seq.block_table
        return tables

    def _sample_shaped(
        self, drawing: Sequence[RequestSequence | None], logits: Array, sampling: SamplingArrays
    ) -> Array:
        rows = logits.shape[0]
        positions = np.zeros(rows, np.int32)
        words = np.full((rows, -(-self._vocab // history.WORD)), 0xFFFFFFFF, np.uint32)
        slots = np.full(rows, self.buckets.max_running, np.int32)
        for row, seq in enumerate(drawing):
            if seq is None:
                continue
            positions[row] = len(seq.tokens)
            if (mask := seq.allowed()) is not None:
                words[row] = mask
            if seq.keeps_history:
                slots[row] = self._slot(seq)
        kept = self._kept()
        program = self.programs[f"sample shaped {rows}"]
        self._history, tokens = program(kept, logits, slots, sampling, words, positions)
        return tokens

    def _slot(self, seq: RequestSequence) -> int:
        """The sequence's row of the history, loaded first if the sequence was just admitted."""
        slot = seq.slot
        assert slot is not None
        if self._history_owner.get(slot) != seq.admission:
            tokens = np.zeros(self._dims.width * self._dims.block_size, np.int32)
            tokens[: len(seq.tokens)] = seq.tokens
            sizes = np.int32(len(seq.request.prompt)), np.int32(len(seq.tokens))
            bias = history.bias_of(seq.request.params, self._vocab)
            load = self.programs["load history"]
            self._history = load(self._kept(), np.int32(slot), tokens, *sizes, bias)
            self._history_owner[slot] = seq.admission
        return slot

    def _kept(self) -> History:
        kept = self._history
        if kept is None:
            empty = History.empty(self.buckets.max_running, self._vocab)
            kept = self._history = jax.device_put(empty, self._everywhere)
        return kept

    def _empty(self) -> KVCache:
        specs = [stored_as(layer.state, self._storage) for layer in self.model.decoder.layers]
        sizes = CacheSizes(self._dims.blocks + 1, self._dims.block_size, self.buckets.max_running)
        return KVCache.empty(specs, sizes, self.model.precision.compute_dtype, self._mesh)

    def _declare(self) -> None:
        """Declare all compiled programs."""
        width, vocab = self._dims.width, self._vocab

        def array(*shape: int, dtype: DTypeLike = np.int32) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=self._everywhere)

        def everywhere(tree: Any) -> Any:
            return jax.tree.map(lambda x: array(*x.shape, dtype=x.dtype), tree)

        def no_sampling(rows: int) -> Any:
            return everywhere(SamplingArrays.stack([], rows))

        for shape in self.buckets.shapes:
            rows = shape.rows
            each = array(rows)
            offsets = each if self._axes > 1 else None
            inputs = Inputs(array(*shape), each, each, array(rows, width), each, offsets)
            arguments = (self._weights, self._cache, inputs, no_sampling(rows))
            where = None if self._mesh is None else self._step_shardings()
            self.programs.add(f"step {shape}", self._step, *arguments, donate=1, shardings=where)
            if self._images is not None and shape in self.buckets.prefill and rows == 1:
                sizes = self.model.decoder.d_model, self.model.precision.compute_dtype
                images = everywhere(ImageInputs.like(self._images, shape.tokens, *sizes))
                name = f"image step {shape}"
                self.programs.add(name, self._step, *arguments, images, donate=1, shardings=where)
        for shape in self.buckets.prefill:
            if shape.rows == 1:
                sizes, dtype = self.model.decoder.d_model, self.model.precision.compute_dtype
                arguments = array(1, shape.tokens, sizes, dtype=dtype), array(shape.tokens)
                name = f"prompt logprobs {shape.tokens}"
                score = self._score_prompt
                self.programs.add(name, score, self._weights, *arguments, on_demand=True)
        kept = everywhere(jax.eval_shape(lambda: History.empty(self.buckets.max_running, vocab)))
        for rows in self.buckets.rows:
            logits, each = array(rows, vocab, dtype=np.float32), array(rows)
            sampling = no_sampling(rows)
            words = array(rows, -(-vocab // history.WORD), dtype=np.uint32)
            shaped = (kept, logits, each, sampling, words, each)
            self.programs.add(f"sample shaped {rows}", history.sample_shaped, *shaped, donate=0)
            self.programs.add(f"logprobs {rows}", log_probabilities, logits, each)
            if self._scores:
                heat = array(rows, dtype=np.float32)
                self.programs.add(f"scores {rows}", drawn_log_probabilities, logits, each, heat)
        bias = array(MAX_BIASES), array(MAX_BIASES, dtype=np.float32)
        tokens = array(width * self._dims.block_size)
        row = (kept, array(), tokens, array(), array(), bias)
        self.programs.add("load history", history.load, *row, donate=0)

    def _score_prompt(
        self, weights: Unstacked, hidden: Float[Array, "1 t d"], tokens: Int[Array, "t"]
    ) -> tuple[Array, ...]:
        with contextlib.nullcontext() if self._mesh is None else self._mesh.active():
            head = functools.partial(self._logits, weights)
            return prompt_log_probabilities(head, hidden[0], tokens)

    def _logits(self, weights: Unstacked, hidden: Float[Array, "... d"]) -> Float[Array, "... v"]:
        """Logits of the model's vocabulary, without rows that only pad it."""
        return unstacked.project(self.model, weights, hidden)[..., : self._vocab]

    def _step_shardings(self) -> Any:
        """Where a step's results are: its cache as it was, all else on every device."""
        cache = jax.tree.map(lambda leaf: leaf.sharding, self._cache)
        return cache, *(self._everywhere,) * 4

    def _step(
        self,
        weights: Unstacked,
        cache: KVCache,
        inputs: Inputs,
        sampling: SamplingArrays,
        images: ImageInputs | None = None,
    ) -> tuple[
        KVCache,
        Float[Array, "b v"],
        Int[Array, "b"],
        tuple[Int[Array, "b 1"], Int[Array, "b"]],
        Float[Array, "1 t d"] | None,
    ]:
        """The cache with the new tokens, logits after each row's last, and the token that is drawn
        from them, twice: to be looked at, and as input of the step that follows; hidden states of
        one row alone."""
        tokens, start, counts, tables, slots, offsets = inputs
        # The C++ kernel takes whole arrays; on a mesh XLA shards the definition by heads.
        kernel = "auto" if self._mesh is None else "reference"
        longest = self._dims.width * self._dims.block_size
        last_seen = None if images is None else images.last_seen
        context = Paged(tables, start, counts, slots, kernel, longest, last_seen)
        positions, there = context.positions(tokens.shape[1]), None
        if images is not None:
            turned, added = images.rotary_positions, images.by_layer
            there = MultimodalInputs(images.embeddings, images.places, turned, added)
        elif offsets is not None:
            turned = (positions + offsets[:, None])[..., None]
            there = MultimodalInputs(rotary_positions=jnp.repeat(turned, self._axes, axis=2))
        with contextlib.nullcontext() if self._mesh is None else self._mesh.active():
            hidden, cache = unstacked.hidden(
                self.model, weights, tokens, positions, context, cache, there
            )
            last = jnp.maximum(counts - 1, 0)
            newest = hidden[jnp.arange(tokens.shape[0]), last]
            logits = self._logits(weights, newest)
        drawn = sample(logits, sampling, start + counts)
        states = hidden if tokens.shape[0] == 1 else None
        return cache, logits, drawn, (drawn[:, None], start + counts), states


def _on_one_device(leaf: Any) -> Any:
    spread = isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
    return jax.device_put(leaf, jax.devices()[0]) if spread else leaf
