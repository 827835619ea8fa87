"""Mixtures of experts: each token goes through a few of many gated MLPs, and none is dropped.

Tokens are sorted by expert and multiplied group by group (``ziggurat.kernels.grouped_matmul``). On
a mesh each device sorts the tokens that it has; over the axis that shards the experts, tokens are
gathered first, every device runs its own experts, and the sums are scattered back.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from ziggurat.core.errors import ConfigError
from ziggurat.kernels.grouped_matmul import grouped_matmul, row_groups
from ziggurat.kernels.linear import QuantizedWeight, dense, is_weight_node, take_rows
from ziggurat.mesh import Layout, active_layout
from ziggurat.nn.linear import Linear, constant, parameter
from ziggurat.nn.mlp import ACTIVATIONS, Activation, GatedMLP, GatedMlpConfig
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.precision import Precision
from ziggurat.nn.router import Router, RouterConfig, Routing


@dataclasses.dataclass(frozen=True)
class ClampedSwiglu:
    r"""GPT-OSS's gate, :math:`g\,\sigma(\alpha g) (u + 1)` with :math:`g` and :math:`u` clamped
    (https://arxiv.org/abs/2508.10925)."""

    alpha: float
    """Gain inside the sigmoid."""
    limit: float
    """Bound of ``g`` from above and of ``u`` from both sides."""

    def __call__(self, gate: Float[Array, "n f"], up: Float[Array, "n f"]) -> Float[Array, "n f"]:
        gate, up = jnp.minimum(gate, self.limit), jnp.clip(up, -self.limit, self.limit)
        return gate * jax.nn.sigmoid(self.alpha * gate) * (up + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureOfExpertsConfig:
    """Config of a :class:`MixtureOfExperts`."""

    router: RouterConfig
    hidden: int
    """Width of one expert between its two matmuls."""
    activation: Activation | ClampedSwiglu = "silu"
    """Gate function."""
    bias: bool = False
    """Biases on the experts' projections."""
    shared: GatedMlpConfig | None = None
    """A feed-forward block that every token goes through besides (DeepSeek)."""
    shared_gate: bool = False
    """The shared block's result is multiplied by the sigmoid of a projection of the input to one
    number (Qwen2-MoE)."""

    branch_norms: NormConfig | None = None
    """Experts and shared block each have such a norm before and after them (Gemma 4). The mixture
    then reads the stream, and its block has no norm before it."""

    def __post_init__(self):
        assert self.shared is not None or not self.shared_gate
        assert self.shared is not None or self.branch_norms is None

    @property
    def active_share(self) -> float:
        """The share of the experts' parameters that multiplies a token."""
        return self.router.chosen / self.router.experts

    def build(
        self, width: int, std: float, precision: Precision, rngs: nnx.Rngs
    ) -> "MixtureOfExperts":
        return MixtureOfExperts(width, self, std=std, precision=precision, rngs=rngs)


class ExpertLinear(nnx.Module):
    """One affine map per expert: kernels ``[e, d_in, d_out]`` and biases ``[e, d_out]``."""

    def __init__(
        self,
        experts: int,
        d_in: int,
        d_out: int,
        axes: tuple[str, str],
        *,
        bias: bool,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        self.kernel = parameter(rngs, (experts, d_in, d_out), ("experts", *axes), std, precision)
        axes = ("experts", axes[1])
        self.bias = constant(0.0, (experts, d_out), axes, precision) if bias else None


class Experts(nnx.Module):
    """The experts' weights: ``gate``, ``up`` and ``down``."""

    def __init__(
        self,
        width: int,
        c: MixtureOfExpertsConfig,
        *,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        def linear(d_in: int, d_out: int, axes: tuple[str, str]) -> ExpertLinear:
            rest: dict[str, Any] = {"std": std, "precision": precision, "rngs": rngs}
            return ExpertLinear(c.router.experts, d_in, d_out, axes, bias=c.bias, **rest)

        self.gate = linear(width, c.hidden, ("embed", "mlp"))
        self.up = linear(width, c.hidden, ("embed", "mlp"))
        self.down = linear(c.hidden, width, ("mlp", "embed"))


class MixtureOfExperts(nnx.Module):
    r"""Mixture of gated MLPs :math:`y = \sum_{i \in \mathrm{top}_k} w_i E_i(x) + S(x)`.

    Papers: Shazeer et al. 2017, https://arxiv.org/abs/1701.06538; Jiang et al. 2024 (Mixtral),
    https://arxiv.org/abs/2401.04088; Dai et al. 2024 (shared experts),
    https://arxiv.org/abs/2401.06066.
    """

    def __init__(
        self,
        width: int,
        c: MixtureOfExpertsConfig,
        *,
        std: float,
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        rest: dict[str, Any] = {"std": std, "precision": precision, "rngs": rngs}
        self.router = Router(c.router, width, **rest)
        self.experts = Experts(width, c, **rest)
        self.shared = None if c.shared is None else GatedMLP(width, c.shared, **rest)
        gate = ("embed", None)
        self.shared_gate = Linear(width, 1, gate, bias=False, **rest) if c.shared_gate else None
        for branch in ("experts", "shared"):
            for place in ("norm", "post_norm"):
                norm = c.branch_norms and c.branch_norms.build(width, precision)
                setattr(self, f"{branch}_{place}", norm)
        self.activation: Activation | ClampedSwiglu = c.activation

    def __call__(
        self, x: Float[Array, "b t d"], counted: Bool[Array, "b t"] | None = None
    ) -> tuple[Float[Array, "b t d"], Routing]:
        """``y``, and the router's report over the tokens that are ``counted`` (default all)."""
        chosen, weights, routing = self.router(x, counted)
        parameters = {
            name: {"kernel": part.kernel[...].astype(x.dtype)}
            | ({} if part.bias is None else {"bias": part.bias[...].astype(x.dtype)})
            for name, part in (
                ("gate", self.experts.gate),
                ("up", self.experts.up),
                ("down", self.experts.down),
            )
        }
        layout, read = active_layout(), self._normed("experts_norm", x)
        with jax.named_scope("experts"):
            if layout is None or layout.mesh.size == 1:
                y = _mix(read, chosen, weights, parameters, self.activation)
            else:
                y = _mix_on_mesh(layout, read, chosen, weights, parameters, self.activation)
        y = self._normed("experts_post_norm", y)
        return y if self.shared is None else y + self._shared(x), routing

    def _shared(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Result of the shared block."""
        assert self.shared is not None
        y, _ = self.shared(self._normed("shared_norm", x))
        y = self._normed("shared_post_norm", y)
        return y if self.shared_gate is None else y * jax.nn.sigmoid(self.shared_gate(x))

    def _normed(self, name: str, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        norm = getattr(self, name)
        return x if norm is None else norm(x)


def _mix(
    x: Float[Array, "b t d"],
    chosen: Int[Array, "b t k"],
    weights: Float[Array, "b t k"],
    parameters: dict[str, dict[str, Any]],
    activation: Activation | ClampedSwiglu,
    first: Int[Array, ""] | int = 0,
    parts: int = 1,
) -> Float[Array, "b t d"]:
    """Output of the experts from ``first`` on; chosen experts that are not here add nothing.

    Of as many ``parts`` are all experts. That part of the rows is expected to have its expert here;
    the scope tells ``ziggurat.plan.work``, since the matmul skips all others.
    """
    k, count = chosen.shape[-1], parameters["gate"]["kernel"].shape[0]
    here = (chosen >= first) & (chosen < first + count)
    local = jnp.where(here, chosen - first, count).reshape(-1)
    order = jnp.argsort(local)
    inverse = jnp.argsort(order)
    ends = jnp.searchsorted(local[order], jnp.arange(count), side="right")
    sizes = jnp.diff(ends, prepend=0)
    group = jnp.minimum(row_groups(sizes, order.size), count - 1)

    def project(rows: Array, name: str) -> Array:
        with jax.named_scope(f"share_1_in_{parts}"):
            out = grouped_matmul(rows, parameters[name]["kernel"], sizes)
        bias = parameters[name].get("bias")
        return out if bias is None else out + take_rows(bias, group)

    rows = _permuted(jnp.repeat(x.reshape(-1, x.shape[-1]), k, axis=0), order, inverse)
    gate, up = project(rows, "gate"), project(rows, "up")
    if isinstance(activation, ClampedSwiglu):
        hidden = activation(gate, up)
    else:
        hidden = ACTIVATIONS[activation](gate) * up
    out = _permuted(project(hidden, "down"), inverse, order).reshape(*chosen.shape, -1)
    shares = jnp.where(here, weights, 0.0)
    return jnp.einsum("btkd,btk->btd", out.astype(shares.dtype), shares).astype(x.dtype)


def _mix_on_mesh(
    layout: Layout,
    x: Float[Array, "b t d"],
    chosen: Int[Array, "b t k"],
    weights: Float[Array, "b t k"],
    parameters: dict[str, dict[str, Any]],
    activation: Activation | ClampedSwiglu,
) -> Float[Array, "b t d"]:
    """:func:`_mix` on each device's tokens, experts and share of their width."""
    tokens = layout.sharding(("batch", "sequence", None), x.shape, "an activation").spec
    over_experts, over_width = layout.spec(("experts", "mlp"))
    split = _names(over_experts) + _names(over_width)
    ways = math.prod(layout.sizes[axis] for axis in _names(over_width))
    _refuse_rounding(parameters)
    specs = {}
    for name, axes in (
        ("gate", (None, over_width)),
        ("up", (None, over_width)),
        ("down", (over_width, None)),
    ):
        whole = PartitionSpec(over_experts, *axes)
        kernel, spec = _sharded(parameters[name]["kernel"], whole, ways)
        parameters[name] |= {"kernel": kernel}
        specs[name] = {"kernel": spec}
        if "bias" in parameters[name]:
            specs[name] |= {"bias": PartitionSpec(over_experts, axes[1])}
    # each axis that splits the experts or their width is an axis of the tokens too, or of neither
    along = {axis: d for d in (0, 1) for axis in _names(tokens[d]) if axis in split}
    alike = tuple(axis for axis in split if axis not in along)
    parts = math.prod(layout.sizes[axis] for axis in _names(over_experts))

    def gathered(array: Array) -> Array:
        for axis in reversed(along):
            array = jax.lax.all_gather(array, axis, axis=along[axis], tiled=True)
        return array

    def run(x: Array, chosen: Array, weights: Array, parameters: dict) -> Array:
        count = parameters["gate"]["kernel"].shape[0]
        names = _names(over_experts)
        first = jax.lax.axis_index(names) * count if names else 0
        if "bias" in parameters["down"]:  # added on every device that has a share of the width
            parameters["down"]["bias"] = parameters["down"]["bias"] / ways
        x, chosen, weights = gathered(x), gathered(chosen), gathered(weights)
        y = _mix(x, chosen, weights, parameters, activation, first, parts)
        y = jax.lax.psum(y, alike) if alike else y
        for axis in along:
            y = jax.lax.psum_scatter(y, axis, scatter_dimension=along[axis], tiled=True)
        return y

    return jax.shard_map(
        run,
        mesh=layout.mesh,
        in_specs=(tokens, tokens, tokens, specs),
        out_specs=tokens,
        check_vma=False,  # the grouped matmul's loops start from zeros that are alike everywhere
    )(x, chosen, weights, parameters)


def _sharded(kernel: Any, spec: PartitionSpec, ways: int) -> tuple[Any, Any]:
    """A stack of kernels as devices take their share of it, and the specs of its parts.

    A quantised one stays so, unless devices share its inputs and a part does not divide by tiles.
    """
    experts, inputs, outputs = spec
    if not isinstance(kernel, QuantizedWeight) or (inputs and kernel.order is not None):
        return dense(kernel) if is_weight_node(kernel) else kernel, spec
    order = None if kernel.order is None else PartitionSpec(experts, None)
    parts = dataclasses.replace(kernel, order=None)
    sizes = [part.shape[-2] for part in jax.tree.leaves(parts)]
    if inputs and any(size > 1 and size % ways for size in sizes):
        return dense(kernel), spec

    def one(part: Array) -> PartitionSpec:
        return PartitionSpec(experts, inputs if part.shape[-2] > 1 else None, outputs)

    return kernel, dataclasses.replace(jax.tree.map(one, parts), order=order)


def _refuse_rounding(parameters: dict[str, dict[str, Any]]) -> None:
    """Quantised activations need a scale over a width that devices share here."""
    for name, part in parameters.items():
        kernel = getattr(part["kernel"], "base", part["kernel"])
        if isinstance(kernel, QuantizedWeight) and kernel.format.activation is not None:
            raise ConfigError(
                f"experts' {name} projection on a mesh",
                found=f"activations quantised to {kernel.format.activation}",
                expected="float activations on several devices",
                fix="use one device, or a recipe that quantises the experts' weights alone",
            )


def _names(part: Any) -> tuple[str, ...]:
    """Mesh axes of one dimension of a partition spec."""
    return part if isinstance(part, tuple) else (part,) if part else ()


@jax.custom_vjp
def _permuted(
    x: Float[Array, "m d"], order: Int[Array, " m"], inverse: Int[Array, " m"]
) -> Float[Array, "m d"]:
    """Rows in another order. The gradient goes back by the inverse order; a gather's own would add
    row by row."""
    return x[order]


_permuted.defvjp(
    lambda x, order, inverse: (x[order], inverse),
    lambda inverse, dy: (dy[inverse], None, None),
)
