"""Operations of the library as JAX sees them: the C++ call where it may stand, else the plain form.

What an operation becomes is decided when a program is lowered, because only then is certain where
it will run: the C++ call stands in programs for one CPU device, or for each of several within
``shard_map``. A program for another platform, one that XLA partitions by itself, and one that is
exported (to be run where there may be no such library) get the plain form instead.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from ziggurat.kernels.cpu.library import PREFIX, available
from ziggurat.kernels.placement import platform

Shapes = Sequence[jax.ShapeDtypeStruct]
Transpose = Callable[..., jax.Array]

Attribute = float | int | str | bool
"""A setting of a call that is known while it is traced."""


def usable(name: str, *arrays: jax.Array) -> bool:
    """Whether ``auto`` may take an operation of the library for these arrays: all float32 and of
    known sizes, and what is traced now will run on CPU."""
    if platform() != "cpu" or not available(name):
        return False
    sizes = [size for x in arrays for size in x.shape]
    known = all(isinstance(size, int) for size in sizes)  # an export may leave them open
    return known and all(x.dtype == jnp.float32 for x in arrays)


def operation(
    name: str,
    shapes: Callable[..., Shapes],
    plain: Callable[..., Sequence[jax.Array]],
    transposes: tuple[Transpose, Transpose] | None = None,
    aliases: Mapping[int, int] | None = None,
) -> Callable[..., list[jax.Array]]:
    """Wrap an operation of the library as a function ``(*arrays, **attributes) -> list of arrays``
    that JAX can trace.

    Differentiating it differentiates the plain form; give it a ``jax.custom_vjp`` where that is too
    slow. Under ``vmap`` it runs once for each element, in turn.

    Args:
        name: of the handler, as in its source file.
        shapes: from the arguments' shapes and the attributes to those of the results.
        plain: the same operation by ``jax.numpy``.
        transposes: for an operation that is linear in each of two arrays and has one result: from
            ``(cotangent, other array, **attributes)`` to the gradient of the first and of the
            second. Then derivatives, forward and backward, call the operation too.
        aliases: arguments, by place, whose memory becomes that of a result; XLA copies one first
            where it is still needed.

    Attributes are numbers or strings and known while tracing; a Python float arrives in C++ as
    ``double``, an integer as ``int64_t``, a Boolean as ``bool``.
    """
    primitive = Primitive(PREFIX + name)
    primitive.multiple_results = True

    def abstract(*arguments: Any, **attributes: Any) -> list[ShapedArray]:
        made = shapes(*arguments, **attributes)
        return [ShapedArray(x.shape, x.dtype) for x in made]

    def lower(context: Any, *operands: Any, **attributes: Any) -> Any:
        if available(name) and _may_call(context.module_context):
            rule = jax.ffi.ffi_lowering(PREFIX + name, operand_output_aliases=aliases)
            return rule(context, *operands, **attributes)
        form = functools.partial(plain, **attributes)
        return mlir.lower_fun(form, multiple_results=True)(context, *operands)

    @functools.lru_cache(maxsize=64)
    def compiled(attributes: tuple[tuple[str, Attribute], ...]) -> Callable[..., list[jax.Array]]:
        return jax.jit(lambda *arrays: primitive.bind(*arrays, **dict(attributes)))

    def batch(arguments: Any, axes: Any, **attributes: Any) -> Any:
        mapped = [place for place, axis in enumerate(axes) if axis is not None]
        rows = [jnp.moveaxis(arguments[place], axes[place], 0) for place in mapped]

        def one(row: list[Array]) -> list[jax.Array]:
            whole = list(arguments)
            for place, part in zip(mapped, row):
                whole[place] = part
            return primitive.bind(*whole, **attributes)

        results = jax.lax.map(one, rows)
        return results, [0] * len(results)

    primitive.def_impl(lambda *arrays, **given: compiled(tuple(sorted(given.items())))(*arrays))
    primitive.def_abstract_eval(abstract)
    mlir.register_lowering(primitive, lower)
    if transposes is None:
        ad.primitive_jvps[primitive] = functools.partial(_plain_tangents, plain)
    else:
        ad.primitive_jvps[primitive] = functools.partial(_bilinear_tangents, primitive)
        ad.primitive_transposes[primitive] = functools.partial(_bilinear_transpose, *transposes)
    batching.primitive_batchers[primitive] = batch

    def call(*arrays: jax.Array, **attributes: Any) -> list[jax.Array]:
        return primitive.bind(*arrays, **attributes)

    return call


def _plain_tangents(
    plain: Callable[..., Sequence[Array]], primals: Any, tangents: Any, **attributes: Any
) -> Any:
    tangents = [ad.instantiate_zeros(t) for t in tangents]

    def form(*arrays: jax.Array) -> list[jax.Array]:
        return list(plain(*arrays, **attributes))

    return jax.jvp(form, tuple(primals), tuple(tangents))


def _bilinear_tangents(primitive: Primitive, primals: Any, tangents: Any, **attributes: Any) -> Any:
    (a, b), (d_a, d_b) = primals, tangents
    out = primitive.bind(a, b, **attributes)
    parts = [(d_a, b)] if not isinstance(d_a, ad.Zero) else []
    parts += [(a, d_b)] if not isinstance(d_b, ad.Zero) else []
    found = [primitive.bind(*part, **attributes)[0] for part in parts]
    return out, [functools.reduce(jnp.add, found)]


def _bilinear_transpose(first: Any, second: Any, cotangents: Any, a: Any, b: Any, **given: Any):
    (cotangent,) = cotangents
    unknown = a if ad.is_undefined_primal(a) else b
    if isinstance(cotangent, ad.Zero):
        gradient = ad.Zero(unknown.aval)
    else:
        gradient = first(cotangent, b, **given) if unknown is a else second(cotangent, a, **given)
    return (gradient, None) if unknown is a else (None, gradient)


def _may_call(module: Any) -> bool:
    """Whether a program being lowered runs on one CPU, here."""
    if tuple(module.platforms) != ("cpu",) or module.lowering_parameters.for_export:
        return False
    context = module.axis_context
    if isinstance(context, mlir.SPMDAxisContext):  # within shard_map: all axes must be manual
        return context.mesh.size == 1 or context.manual_axes == frozenset(context.mesh.axis_names)
    return getattr(context, "num_devices", 1) == 1
