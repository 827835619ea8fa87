"""A causal language model as pure functions over a nested dict of parameters.

>>> import jax, jax.numpy as jnp
>>> from ziggurat.models import LlamaConfig
>>> config = LlamaConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=2)
>>> model = LanguageModel.build(config)
>>> params = model.init(jax.random.key(0))
>>> model.logits(params, jnp.array([[1, 2, 3]])).shape
(1, 3, 32)
"""

import dataclasses
from functools import partial
from typing import Protocol, TypeVar, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ziggurat.core.errors import ShapeError
from ziggurat.kernels.linear import (
    PackedWeight,
    Weight,
    project_rows,
)
from ziggurat.models.traced_model import Params, TracedModel
from ziggurat.nn.attention_context import AttentionContext, Cached, Causal
from ziggurat.nn.decoder import Decoder, DecoderConfig
from ziggurat.nn.layer_scan import Remat
from ziggurat.nn.moe import MixtureOfExpertsConfig
from ziggurat.nn.multimodal import MultimodalInputs
from ziggurat.nn.precision import Precision
from ziggurat.nn.router import Routing
from ziggurat.nn.stacking import stack_name

PARAMS = "params"
"""Item of a checkpoint step that holds a model's parameters."""
C = TypeVar("C", bound=AttentionContext)


@runtime_checkable
class ModelConfig(Protocol):
    """Interface of a language-model family's config node."""

    @property
    def kind(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_sequence_length(self) -> int: ...

    def decoder(self) -> DecoderConfig:
        """The decoder this config stands for."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModel(TracedModel):
    """A family's config with its traced decoder; holds no arrays."""

    config: ModelConfig
    decoder: DecoderConfig

    @classmethod
    def build(
        cls,
        config: ModelConfig,
        precision: Precision | None = None,
        remat: Remat = "none",
        attention_kernel: str = "auto",
    ) -> "LanguageModel":
        """Trace the model's structure; allocates nothing.

        Args:
            config: a family's config node, e.g. ``LlamaConfig``.
            precision: parameter and compute types (default float32 for both).
            remat: what a block keeps for its backward pass.
            attention_kernel: a name of ``ziggurat.kernels.attention``, or ``"auto"``.
        """
        precision, decoder = precision or Precision(), config.decoder()

        make = partial(
            Decoder,
            decoder,
            precision=precision,
            remat=remat,
            attention_kernel=attention_kernel,
        )
        return cls.trace(make, precision, config=config, decoder=decoder)

    def with_decoder(self, decoder: DecoderConfig) -> "LanguageModel":
        """The model of the same config with another decoder, and its float parameters."""
        assert isinstance(self.make, partial), "as build made it"
        make = partial(Decoder, decoder, **self.make.keywords)
        return LanguageModel.trace(make, self.precision, config=self.config, decoder=decoder)

    @property
    def heads(self) -> list[dict[str, int]]:
        return [block.mixer.divided for block in self.decoder.stacks]

    def hidden(
        self,
        params: Params,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t"],
        context: C,
        inputs: MultimodalInputs | None = None,
    ) -> tuple[Float[Array, "b t d"], C]:
        """Final hidden states, and the context after these tokens.

        Args:
            params: the parameters.
            tokens: token ids.
            positions: of the tokens, from 0 in each document.
            context: training, prefill or decoding; see :mod:`ziggurat.nn.attention_context`.
            inputs: embeddings of images or other input, and positions of several axes.
        """
        return nnx.merge(self.graph, params)(tokens, positions, context, inputs)

    def run(
        self,
        params: Params,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t"],
        context: C,
        inputs: MultimodalInputs | None = None,
    ) -> tuple[Float[Array, "b t d"], C, dict[str, Routing]]:
        """Final hidden states and context as :meth:`hidden` gives them, with the router statistics
        of mixtures of experts by stack of layers."""
        return nnx.merge(self.graph, params).run(tokens, positions, context, inputs)

    def head(self, params: Params) -> Weight:
        """The output matrix: ``logits = hidden @ head.T``."""
        return nnx.merge(self.graph, params).head

    def logits(
        self,
        params: Params,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t"] | None = None,
        context: AttentionContext | None = None,
        inputs: MultimodalInputs | None = None,
    ) -> Float[Array, "b t v"]:
        """All logits in float32; for inspection, since training never holds them whole."""
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        hidden, _ = self.hidden(params, tokens, positions, context or Causal(), inputs)
        return self.project(params, hidden)

    def project(self, params: Params, hidden: Float[Array, "... d"]) -> Float[Array, "... v"]:
        """Hidden states to logits in float32."""
        return self.logits_of(self.head(params), hidden)

    def logits_of(
        self, head: Weight | PackedWeight, hidden: Float[Array, "... d"]
    ) -> Float[Array, "... v"]:
        """Logits from hidden states and the output matrix."""
        logits = project_rows(hidden, head)
        softcap = self.decoder.logit_softcap
        return logits if softcap is None else softcap * jnp.tanh(logits / softcap)

    def cache(self, batch: int, slots: int) -> Cached:
        """An empty static cache for ``batch`` rows of ``slots`` tokens.

        Raises:
            ShapeError: there are more slots than learned positions.
        """
        learned = self.decoder.longest
        if learned is not None and slots > learned:
            raise ShapeError(
                "key/value cache",
                found=f"{slots} slots",
                expected=f"at most {learned}, one for each learned position",
                fix="shorten the context",
            )
        return Cached.empty(self.decoder.states, batch, slots, self.precision.compute_dtype)

    @property
    def active_parameter_count(self) -> int:
        """Parameters without the experts of mixtures that a token is not sent to."""
        count = 0
        for name, leaf in self.weights.items():
            mixture = self._mixture_of(name)
            count += leaf.size if mixture is None else round(leaf.size * mixture.active_share)
        return count

    @property
    def matmul_parameter_count(self) -> int:
        """Parameters that multiply every token: all matrices but an untied input embedding, and of
        a mixture's experts as many as a token is sent to."""
        count = self.decoder.vocab_size * self.decoder.hidden_width
        for name, leaf in self.weights.items():
            if name.endswith("kernel"):
                mixture = self._mixture_of(name)
                count += leaf.size if mixture is None else round(leaf.size * mixture.active_share)
        return count

    def _mixture_of(self, name: str) -> MixtureOfExpertsConfig | None:
        """The mixture to whose experts a parameter belongs, if any."""
        stack, _, rest = name.partition(".")
        if not rest.startswith("mlp.experts."):
            return None
        names = [stack_name(number) for number in range(len(self.decoder.stacks))]
        mlp = self.decoder.stacks[names.index(stack)].mlp
        assert isinstance(mlp, MixtureOfExpertsConfig)
        return mlp

    @property
    def has_experts(self) -> bool:
        """Whether any layer is a mixture of experts."""
        return any(isinstance(block.mlp, MixtureOfExpertsConfig) for block in self.decoder.stacks)

    @property
    def index_limits(self) -> dict[str, int]:
        """First ids and positions that are too large to look up; rotary positions must be whole
        numbers in float32."""
        vocab = self.decoder.vocab_size
        positions = self.decoder.longest or 1 << 24
        return {"tokens": vocab, "targets": vocab, "positions": positions}

    @property
    def attention_channels(self) -> float:
        """Query channels of all heads of all layers, ``l h c`` where layers are alike: each costs
        4 FLOPs per query and key (2 for the score, 2 for mixing)."""
        return sum(layer.block.mixer.cost.per_pair for layer in self.decoder.layers) / 4

    @property
    def recurrent_flops_per_token(self) -> int:
        """FLOPs of a forward pass per token in recurrent layers, beside their weight matrices."""
        return sum(layer.block.mixer.cost.per_token for layer in self.decoder.layers)
