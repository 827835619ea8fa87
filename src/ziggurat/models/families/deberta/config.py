"""DeBERTa-v2 and v3: scores of contents and of distances, in terms of their own."""

from typing import Literal

from ziggurat.core import config
from ziggurat.models.families.encoder_fields import TextEncoderFields
from ziggurat.nn.attention_context import AttentionRule
from ziggurat.nn.block import BlockConfig, LayerConfig
from ziggurat.nn.disentangled_attention import DisentangledAttentionConfig, PositionTerm
from ziggurat.nn.encoder import EncoderConfig
from ziggurat.nn.encoder_heads import TransformConfig
from ziggurat.nn.encoder_inputs import TokenInputConfig
from ziggurat.nn.mlp import Activation, PlainMlpConfig
from ziggurat.nn.pooling import StatePoolerConfig
from ziggurat.nn.relative_positions import RelativeEmbeddingsConfig
from ziggurat.nn.token_convolution import TokenConvolutionConfig


@config.node
class DebertaV2Config(TextEncoderFields):
    """BERT whose scores are sums of terms of contents and of distances; v3 is of the same form.

    Papers: He et al. 2020, https://arxiv.org/abs/2006.03654; He et al. 2021,
    https://arxiv.org/abs/2111.09543.
    """

    kind: Literal["deberta_v2"] = "deberta_v2"
    norm_eps: float = 1e-7
    """Added to the variance in norms."""
    embedding_width: int | None = None
    """Width of the embeddings; default ``d_model``, otherwise a layer leads from one to the
    other."""
    learned_positions: bool = False
    """A table of positions is added to the embeddings."""
    token_types: int = 0
    """Kinds of token, which tell a first text from a second; 0: it takes none."""
    relative: bool = True
    """Distances take part in the scores."""
    position_terms: tuple[PositionTerm, ...] = ("c2p", "p2c")
    """Terms of distances in the scores, whose number scales all of them."""
    buckets: int | None = None
    """Classes of distances to one side, of which far ones share some; ``None``: one for each
    distance."""
    longest_distance: int | None = None
    """Distance in tokens from which on all share a class; default ``max_sequence_length``."""
    shared_projections: bool = False
    """Distances go through the projections of queries and keys, rather than through their own."""
    normed_distances: bool = False
    """Vectors of distances are normalised."""
    convolution: int = 0
    """Tokens under a convolution beside the first layer, an odd number; 0: there is none."""
    convolution_activation: Activation = "tanh"
    """Function behind it."""
    convolution_groups: int = 1
    """Groups of channels that it does not mix."""
    pooler_activation: Activation = "gelu"
    """Function of the dense layer below a head of texts."""
    legacy_head: bool = False
    """Names of a head of token ids in files are those that transformers used at first."""

    def __post_init__(self):
        TextEncoderFields.__post_init__(self)
        require = config.require
        for name in ("embedding_width", "longest_distance"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "a number >= 1")
        require(self.token_types >= 0, "token_types", self.token_types, "a number >= 0")
        terms = self.position_terms
        once = len(set(terms)) == len(terms)
        require(once, "position_terms", list(terms), "each term once")
        require(bool(terms) or not self.relative, "relative", self.relative, "false without terms")
        buckets, most = self.buckets, 2 * self.longest - 3
        held = buckets is None or 2 <= buckets <= most
        require(held, "buckets", buckets, f"2 to {most}, by the longest distance")
        odd = self.convolution == 0 or (self.convolution > 0 and self.convolution % 2 == 1)
        require(odd, "convolution", self.convolution, "an odd number, or 0")
        groups = self.convolution_groups
        divides = groups >= 1 and self.d_model % groups == 0
        require(divides, "convolution_groups", groups, f"a divisor of d_model = {self.d_model}")
        wide = self.legacy_head or self.head != "masked_lm" or not self.projects
        require(wide, "embedding_width", self.embedding_width, "d_model, as the head reads it")

    @property
    def projects(self) -> bool:
        """Whether embeddings have another width than states."""
        return self.embedding_width not in (None, self.d_model)

    @property
    def longest(self) -> int:
        """Distance in tokens from which on all share a class."""
        return self.longest_distance or self.max_sequence_length

    @property
    def rule(self) -> AttentionRule:
        """Attention to all tokens, scaled by the number of terms."""
        channels = self.d_model // self.n_heads
        return AttentionRule((channels * (1 + len(self.position_terms))) ** -0.5)

    @property
    def distances(self) -> RelativeEmbeddingsConfig | None:
        """Vectors of distances."""
        if not self.relative:
            return None
        return RelativeEmbeddingsConfig(
            longest=self.longest,
            buckets=self.buckets,
            norm=self.norm() if self.normed_distances else None,
        )

    def encoder(self) -> EncoderConfig:
        """The encoder this config stands for."""
        distances = self.distances
        mixer = DisentangledAttentionConfig(
            heads=self.n_heads,
            head_dim=self.d_model // self.n_heads,
            terms=() if distances is None else self.position_terms,
            distances=0 if distances is None else distances.rows,
            shared=self.shared_projections,
        )
        mlp = PlainMlpConfig(hidden=self.feed_forward, activation=self.activation)
        block = BlockConfig(mixer=mixer, mlp=mlp, norm=self.norm(), norms="post")
        masked = TransformConfig(
            activation=self.activation,
            norm=self.norm(),
            outputs=self.embedding_width if self.projects else None,
        )
        pooler = StatePoolerConfig(dense=self.d_model, activation=self.pooler_activation)
        return EncoderConfig(
            d_model=self.d_model,
            input=self._input(),
            layers=(LayerConfig(block=block, rule=self.rule, rope=None),) * self.n_layers,
            relative_embeddings=distances,
            convolution=self._convolution(),
            pooler=pooler if self.head == "sequence" else None,
            head=self.head_config(masked=masked),
            init_std=self.init_std,
        )

    def _input(self) -> TokenInputConfig:
        return TokenInputConfig(
            vocab_size=self.vocab_size,
            embedding_width=self.embedding_width if self.projects else None,
            positions=self.max_sequence_length if self.learned_positions else None,
            token_types=self.token_types,
            norm=self.norm(),
            norm_projected=True,
        )

    def _convolution(self) -> TokenConvolutionConfig | None:
        if not self.convolution:
            return None
        return TokenConvolutionConfig(
            size=self.convolution,
            activation=self.convolution_activation,
            norm=self.norm(),
            groups=self.convolution_groups,
        )
