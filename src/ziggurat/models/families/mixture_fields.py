"""Config fields, keys of ``config.json`` and weight names that decoders with mixtures of experts
share."""

from collections.abc import Mapping
from typing import Any

from ziggurat.core import config
from ziggurat.models.conversion import block_names
from ziggurat.models.conversion.hf_config import HFConfig
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.decoder_fields import DecoderFields
from ziggurat.nn.block import MlpConfig
from ziggurat.nn.mlp import GatedMlpConfig
from ziggurat.nn.moe import MixtureOfExpertsConfig
from ziggurat.nn.router import RouterConfig


@config.node
class MixtureFields(DecoderFields):
    """Dimensions of a decoder with mixtures of experts in all or some layers."""

    n_experts: int = 128
    """Experts of each sparse layer."""
    experts_per_token: int = 8
    """Experts each token is sent to."""
    d_ff_expert: int = 768
    """Feed-forward width of one expert; ``d_ff`` is that of dense layers."""

    def __post_init__(self):
        super().__post_init__()
        fits = 1 <= self.experts_per_token <= self.n_experts
        expected = f"1 to n_experts = {self.n_experts}"
        config.require(fits, "experts_per_token", self.experts_per_token, expected)
        config.require(self.d_ff_expert >= 1, "d_ff_expert", self.d_ff_expert, "a number >= 1")

    def mixture(
        self, *, shared: int | None = None, shared_gate: bool = False, **router: Any
    ) -> MixtureOfExpertsConfig:
        """A mixture of these dimensions.

        Args:
            shared: width of the block that every token goes through, if there is one.
            shared_gate: whether that block has a gate.
            router: more settings of the router.
        """
        block = None
        if shared is not None:
            block = GatedMlpConfig(hidden=shared, activation=self.activation)
        return MixtureOfExpertsConfig(
            router=RouterConfig(experts=self.n_experts, chosen=self.experts_per_token, **router),
            hidden=self.d_ff_expert,
            activation=self.activation,
            shared=block,
            shared_gate=shared_gate,
        )


@config.node
class SparseLayerFields(MixtureFields):
    """Which layers are sparse, as the Qwens with experts say it."""

    normalise_weights: bool = True
    """The weights of the chosen experts sum to one."""
    sparse_every: int = 1
    """Every so many layers one is sparse: layer ``i`` (from 0) where ``i + 1`` is a multiple."""
    dense_layers: tuple[int, ...] = ()
    """Layers (from 0) that are dense all the same."""

    def __post_init__(self):
        super().__post_init__()
        config.require(self.sparse_every >= 1, "sparse_every", self.sparse_every, "a number >= 1")
        fits = all(0 <= layer < self.n_layers for layer in self.dense_layers)
        expected = f"numbers of layers, 0 to {self.n_layers - 1}"
        config.require(fits, "dense_layers", list(self.dense_layers), expected)

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer (from 0) is a mixture of experts."""
        return layer not in self.dense_layers and (layer + 1) % self.sparse_every == 0


@config.node
class GroupRoutedFields(MixtureFields):
    """Mixtures as in DeepSeek-V3: a sigmoid router with a correction, limited to groups of experts,
    shared experts, and dense layers at the beginning."""

    n_dense_layers: int = 0
    """Layers at the beginning that are dense."""
    n_shared_experts: int = 1
    """Experts that every token goes through, as one block of that many times ``d_ff_expert``."""
    n_groups: int = 1
    """Equal groups of experts."""
    groups_per_token: int = 1
    """Groups whose experts a token may be sent to."""
    normalise_weights: bool = True
    """The weights of the chosen experts sum to one before they are scaled."""
    routed_scale: float = 1.0
    """Multiplies the weights of the chosen experts."""

    def __post_init__(self):
        super().__post_init__()
        fits = self.n_dense_layers >= 0
        config.require(fits, "n_dense_layers", self.n_dense_layers, "a number >= 0")
        fits = self.n_shared_experts >= 1
        config.require(fits, "n_shared_experts", self.n_shared_experts, "a number >= 1")
        check_groups(self.n_experts, self.n_groups, self.groups_per_token, self.experts_per_token)

    def mlp_of(self, layer: int) -> MlpConfig:
        """Feed-forward part of a layer (from 0)."""
        if layer < self.n_dense_layers:
            return self.mlp()
        return self.mixture(
            shared=self.d_ff_expert * self.n_shared_experts,
            scores="sigmoid",
            normalise=self.normalise_weights,
            scale=self.routed_scale,
            correction=True,
            groups=self.n_groups,
            chosen_groups=self.groups_per_token,
        )


GROUP_ROUTED = {
    "n_experts": "n_routed_experts",
    "experts_per_token": "num_experts_per_tok",
    "d_ff_expert": "moe_intermediate_size",
    "n_shared_experts": "n_shared_experts",
    "n_groups": "n_group",
    "groups_per_token": "topk_group",
    "normalise_weights": "norm_topk_prob",
    "routed_scale": "routed_scaling_factor",
}
"""Settings of :class:`GroupRoutedFields`, ours and theirs."""


def check_groups(
    experts: int, groups: int, chosen_groups: int, chosen: int, least: int = 2
) -> None:
    """Check that groups of experts divide them, and that as many are left as are chosen.

    Args:
        experts: experts.
        groups: groups.
        chosen_groups: groups left to choose from.
        chosen: experts of a token.
        least: experts that a group must have.
    """
    config.require(groups >= 1, "n_groups", groups, "a number >= 1")
    config.require(chosen_groups >= 1, "groups_per_token", chosen_groups, "a number >= 1")
    size = experts // groups
    divides = experts % groups == 0 and (groups == 1 or size >= least)
    expected = f"a divisor of n_experts = {experts}, leaving {least} or more in a group"
    config.require(divides, "n_groups", groups, expected)
    expected = f"at most n_groups = {groups}"
    config.require(chosen_groups <= groups, "groups_per_token", chosen_groups, expected)
    most = size * chosen_groups
    expected = f"at most {most}, the experts of {chosen_groups} groups"
    config.require(chosen <= most, "experts_per_token", chosen, expected)


def read_sparse_layers(hf: HFConfig, n_layers: int) -> dict[str, Any]:
    """Settings of :class:`SparseLayerFields`."""
    layers = hf.get("mlp_only_layers", [])
    if isinstance(layers, list):  # layers that the model does not have have no effect there
        layers = [n for n in layers if not (isinstance(n, int) and n >= n_layers)]
    return {
        "n_experts": hf.get("num_experts"),
        "experts_per_token": hf.get("num_experts_per_tok"),
        "d_ff_expert": hf.get("moe_intermediate_size"),
        "normalise_weights": hf.get("norm_topk_prob"),
        "sparse_every": hf.get("decoder_sparse_step"),
        "dense_layers": layers,
    }


def write_sparse_layers(settings: SparseLayerFields) -> dict[str, Any]:
    """The reverse of :func:`read_sparse_layers`."""
    return {
        "num_experts": settings.n_experts,
        "num_experts_per_tok": settings.experts_per_token,
        "moe_intermediate_size": settings.d_ff_expert,
        "norm_topk_prob": settings.normalise_weights,
        "decoder_sparse_step": settings.sparse_every,
        "mlp_only_layers": list(settings.dense_layers),
    }


def feed_forward_names(
    stack: str,
    mlp: Any,
    layers: block_names.Layers,
    *,
    theirs: str = "mlp",
    router: str = "gate",
    shared: str = "shared_expert",
    correction: str = "gate.e_score_correction_bias",
    experts: Mapping[str, str] = block_names.GATED_MLP,
) -> list[WeightName]:
    """Names of a gated MLP, or of a mixture whose experts are tensors of their own.

    Args:
        stack: the stack's name.
        mlp: the block's feed-forward config.
        layers: the stack's layers.
        theirs: the published module.
        router: the router in it.
        shared: the module of the shared block in it.
        correction: the bias that takes part in the choice of experts alone.
        experts: names of an expert's projections, here and there.
    """
    if not isinstance(mlp, MixtureOfExpertsConfig):
        return block_names.gated_mlp(stack, layers, theirs=theirs, bias=mlp.bias)
    names = block_names.projections(stack, {"mlp.router": f"{theirs}.{router}"}, layers)
    count = mlp.router.experts
    names += block_names.experts(stack, layers, count, f"{theirs}.experts", experts)
    if mlp.router.correction:
        there = f"{block_names.LAYER}{theirs}.{correction}"
        names.append(WeightName(f"{stack}.mlp.router.correction_bias", there, layers=layers))
    if mlp.shared is not None:
        names += block_names.gated_mlp(
            stack, layers, "mlp.shared", f"{theirs}.{shared}", bias=mlp.shared.bias
        )
    if mlp.shared_gate:
        gate = {"mlp.shared_gate": f"{theirs}.{shared}_gate"}
        names += block_names.projections(stack, gate, layers)
    return names
