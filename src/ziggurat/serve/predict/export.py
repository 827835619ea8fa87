"""Writing a bundle: a function traced once for every platform, its weights apart, and the proof.

>>> import tempfile
>>> import jax.numpy as jnp
>>> def score(params, x):
...     return jnp.tanh(x @ params["kernel"])
>>> weights = {"kernel": jnp.ones((4, 2))}
>>> with tempfile.TemporaryDirectory() as folder:
...     path = export(score, weights, "x:FP32[b,4] -> score", Path(folder) / "scorer" / "1")
...     sorted(file.name for file in path.iterdir())
['golden', 'manifest.json', 'program', 'weights']
"""

import contextlib
import importlib.metadata
import logging
import platform as python_platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree, Shaped

from ziggurat import __version__
from ziggurat.core import atomic
from ziggurat.core.errors import ServeError
from ziggurat.core.json_types import JsonObject
from ziggurat.formats.safetensors_files import write_sharded
from ziggurat.kernels.placement import exporting
from ziggurat.serve.predict import manifest as manifests
from ziggurat.serve.predict import padding, rows
from ziggurat.serve.predict.bundle import LoadedBundle, compare, read_case
from ziggurat.serve.predict.manifest import BundleManifest, Golden, WeightEntry
from ziggurat.serve.predict.signature import (
    BATCH,
    Signature,
    Tensor,
    build,
    datatype_of,
    parse_sides,
)
from ziggurat.serve.predict.weights import Parted, part

_log = logging.getLogger(__name__)
PLATFORMS = ("cpu", "cuda", "tpu")
SHARD_BYTES = 256 * 2**20
"""Largest weight file, so that several threads digest a large bundle."""
_OPEN_SIZE = 8
"""Size drawn for a symbol without a table in golden inputs."""

Examples = Sequence[Mapping[str, Shaped[np.ndarray, "..."]]]


def export(
    fn: Callable[..., Any],
    params: PyTree,
    signature: str | Signature,
    path: Path | str,
    *,
    sizes: Mapping[str, Sequence[int]] | None = None,
    golden: Examples = (),
    platforms: Sequence[str] = PLATFORMS,
    labels: Mapping[str, str] | None = None,
    rtol: float | None = None,
    atol: float = 1e-6,
) -> Path:
    """Write ``fn`` with its weights as a bundle that needs no code of ours or yours to serve.

    Before the bundle appears under its name it is loaded as a server would and must reproduce
    ``fn`` on the golden inputs. Along a dimension where joining requests or padding would change
    results, neither is done: :attr:`~ziggurat.serve.predict.manifest.BundleManifest.exact` says so,
    and a warning is logged. That rows are independent is decided on the traced program
    (:mod:`~ziggurat.serve.predict.rows`), that padding does not matter on inputs of every sign and
    magnitude (:mod:`~ziggurat.serve.predict.padding`).

    Args:
        fn: with ``params``, called as ``fn(params, *inputs)``, such as a Linen module's ``apply``;
            without, as ``fn(*inputs)``: a function, or a callable pytree that holds its own weights
            (a Flax NNX or Equinox module). Returns an array, a tuple, or a dict by output name.
        params: any pytree; its arrays become the weights.
        signature: ``"tokens:INT32[b,t] mask:INT32[b,t] -> embedding"``. ``b`` is the batch; other
            names are sizes that may vary. Types and shapes of outputs may be left out.
        path: new directory, ``REPOSITORY/MODEL/VERSION`` for serving.
        sizes: for a symbol other than ``b`` the sizes that are compiled. A request is padded with
            zeros to the next and outputs are cropped, unless the function looks at padding (a mask
            says what it is); then, and for a symbol without sizes, each size that comes is
            compiled.
        golden: sets of inputs to record; default two drawn at random, batches of 1 and 3, with
            integers wider than 8 bits drawn from 0 and 1. Those given also say which integers can
            come, for the trial of padding.
        platforms: what the program is lowered for, in one artefact.
        labels: free text pairs, shown by ``ziggurat bundle inspect``.
        rtol: how near a replay must come, relative to an output's largest magnitude; default 1e-4,
            2e-2 if an output is of 16 bits.
        atol: what may differ besides.

    Returns:
        ``path``.

    Raises:
        ServeError: the signature does not fit the function, the platform set cannot be lowered, or
            calling the module changes its state.

    Paper: `StableHLO <https://openxla.org/stablehlo>`_; exporting:
    `jax.export <https://docs.jax.dev/en/latest/export/export.html>`_.
    """
    path = Path(path)
    _check_new(path)
    inputs, outputs = _sides(signature)
    parted = part(fn, params)
    _check_types(inputs, parted)
    tables = {name: tuple(sorted(set(values))) for name, values in (sizes or {}).items()}
    _check_tables(inputs, tables)
    exported, outputs, reasons = _trace(parted, inputs, outputs, tables, platforms)
    whole = build(Signature, inputs=inputs, outputs=outputs)
    _check_padding(whole, tables)
    cases = _examples(whole, tables, golden)
    rules = _replay_rules(len(cases), outputs, rtol, atol)
    exact = _exact(parted, whole, tables, reasons, cases if golden else (), rules.rtol)
    with atomic.new_directory(path) as directory:
        (directory / manifests.PROGRAM).write_bytes(exported.serialize())
        if parted.weights:
            write_sharded(directory / manifests.WEIGHTS, parted.weights.items(), SHARD_BYTES)
        for number, case in enumerate(cases):
            _record(directory / manifests.GOLDEN, number, case, parted(case, inputs), whole)
        manifest = BundleManifest(
            signature=whole,
            sizes=tables,
            platforms=tuple(exported.platforms),
            x64=_wide(),
            weights=_entries(parted),
            golden=rules,
            labels=dict(labels or {}),
            tools=_tools(exported),
            files=manifests.entries(directory),
            exact=exact,
        )
        manifests.write(directory, manifest)
        prove(directory)
    return path


def prove(path: Path) -> None:
    """Load a bundle, which replays its golden pairs, and check that rows are independent.

    Raises:
        BundleError: it does not compute what it recorded.
        ServeError: a row's output changes with the other rows of its batch.
    """
    bundle = LoadedBundle.load(path)
    manifest = bundle.manifest
    if not manifest.joins_rows:
        return
    for number in range(manifest.golden.cases):
        inputs, outputs = read_case(path, number)
        count = next(iter(inputs.values())).shape[0]
        tried = [({n: a[i : i + 1] for n, a in inputs.items()}, i) for i in range(count)]
        tried += [({n: _with_neighbours(a[:1]) for n, a in inputs.items()}, 0)]
        for given, row in tried:
            found = bundle(given)
            for name, wanted in outputs.items():
                what = f"export: output {name} of row {row}, alone or among other rows"
                golden = manifest.golden
                compare(found[name][:1], wanted[row : row + 1], golden, golden.platform, what)


def _with_neighbours(row: np.ndarray) -> np.ndarray:
    """One row, and after it three of the largest, the smallest and no numbers at all."""
    kind = row.dtype.kind
    if kind == "b":
        extremes: list[Any] = [True, False, True]
    elif kind in "iu":
        extremes = [np.iinfo(row.dtype).max, np.iinfo(row.dtype).min, np.iinfo(row.dtype).max]
    else:
        extremes = [np.inf, -np.inf, np.nan]
    return np.concatenate([row, *(np.full_like(row, value) for value in extremes)])


def _exact(
    parted: Parted,
    signature: Signature,
    tables: Mapping[str, Sequence[int]],
    reasons: Sequence[str | None],
    golden: Examples,
    rtol: float,
) -> dict[str, str]:
    """The dimensions along which nothing is joined or padded, with the reasons."""
    found = {}
    for tensor, reason in zip(signature.outputs, reasons, strict=True):
        if signature.batched and reason is not None:
            text = f"rows of output {tensor.name} depend on one another: {reason}"
            found.setdefault(BATCH, text)
    names = [tensor.name for tensor in signature.outputs]

    def function(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        _, values = _named(parted(inputs, signature.inputs), names)
        return [np.asarray(value) for value in values]

    apart = signature.batched and not found
    found |= padding.seen(function, signature, tables, golden, apart, rtol)
    for name, reason in found.items():
        how = "one request is run at a time" if name == BATCH else "each size is compiled"
        _log.warning("%s is served as it comes, %s: %s", name, how, reason)
    return found


def _sides(signature: str | Signature) -> tuple[tuple[Tensor, ...], tuple[Tensor | str, ...]]:
    if isinstance(signature, Signature):
        return signature.inputs, signature.outputs
    inputs, outputs = parse_sides(signature)
    if not inputs:
        raise ServeError("signature", found="no inputs", expected="at least one")
    return inputs, outputs


def _wide() -> bool:
    """Whether JAX has 64-bit types here and now."""
    return jax.dtypes.canonicalize_dtype(np.int64) == np.int64


def _check_types(inputs: Sequence[Tensor], parted: Parted) -> None:
    if _wide():
        return
    wide = [t for t in inputs if t.dtype.itemsize == 8]
    for tensor in wide:
        narrow = {"INT64": "INT32", "UINT64": "UINT32", "FP64": "FP32"}[tensor.datatype]
        raise ServeError(
            f"signature input {tensor.name}",
            found=tensor.datatype,
            expected=f"{narrow}, since JAX runs without 64-bit types",
            fix="or set jax_enable_x64 before exporting",
        )


def _check_new(path: Path) -> None:
    if path.exists():
        raise ServeError(
            f"bundle {path}",
            found="it is there already",
            expected="a new directory",
            fix="take the next version number",
        )


def _replay_rules(
    cases: int, outputs: tuple[Tensor, ...], rtol: float | None, atol: float
) -> Golden:
    """How near a replay of the golden inputs must come, here and on other platforms."""
    if rtol is None:
        rtol = 2e-2 if any(t.datatype in ("FP16", "BF16") for t in outputs) else 1e-4
    here = jax.default_backend()
    return Golden(
        cases=cases,
        platform="cuda" if here == "gpu" else here,
        rtol=rtol,
        atol=atol,
        elsewhere=max(2.0, 2e-2 / rtol),
    )


def _entries(parted: Parted) -> tuple[WeightEntry, ...]:
    """The manifest's list of the weights."""
    return tuple(
        WeightEntry(name=name, dtype=str(array.dtype), shape=array.shape)
        for name, array in parted.weights.items()
    )


def _trace(
    parted: Parted,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor | str, ...],
    tables: Mapping[str, Sequence[int]],
    platforms: Sequence[str],
) -> tuple[Any, tuple[Tensor, ...], list[str | None]]:
    """The exported program ``(weights, inputs) -> outputs in order``, what it returns, and for each
    output why its rows depend on one another."""
    from jax import export as jax_export

    names: list[str] = []
    declared = [t if isinstance(t, str) else t.name for t in outputs]

    def program(weights: dict[str, jax.Array], given: dict[str, jax.Array]) -> list[jax.Array]:
        result = parted.call(weights, [given[tensor.name] for tensor in inputs])
        found, values = _named(result, declared)
        names[:] = found
        return values

    scope = jax_export.SymbolicScope([f"{name} <= {sizes[-1]}" for name, sizes in tables.items()])

    def struct(tensor: Tensor) -> jax.ShapeDtypeStruct:
        text = ",".join(map(str, tensor.shape))
        shape = jax_export.symbolic_shape(text, scope=scope) if text else ()
        return jax.ShapeDtypeStruct(shape, tensor.dtype)

    weights = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in parted.weights.items()}
    given = {tensor.name: struct(tensor) for tensor in inputs}
    batched = [False] * len(weights)
    batched += [tensor.shape[:1] == (BATCH,) for tensor in sorted(inputs, key=lambda t: t.name)]
    with _tracing(), exporting(platforms):
        compiled = jax.jit(program)
        exported = jax_export.export(compiled, platforms=tuple(platforms))(weights, given)
        reasons = rows.mixing(compiled.trace(weights, given).jaxpr, batched)
    if exported.nr_devices != 1:
        raise ServeError(
            "export: tracing the function",
            found=f"a program for {exported.nr_devices} devices",
            expected="one for a single device",
            fix="export it without sharding constraints",
        )
    made = _checked_outputs(outputs, names, exported.out_avals)
    return exported, made, reasons


@contextlib.contextmanager
def _tracing() -> Iterator[None]:
    """Turn what a user's function raises while it is traced into one line."""
    try:
        yield
    except ServeError:
        raise
    except Exception as error:  # whatever the user's function raises
        line = str(error).strip().partition("\n")[0]
        raise ServeError(
            "export: tracing the function",
            found=f"{type(error).__name__}: {line}",
            expected="a JAX function of the signature's inputs",
        ) from error


def _checked_outputs(
    outputs: tuple[Tensor | str, ...], names: Sequence[str], avals: Sequence[Any]
) -> tuple[Tensor, ...]:
    """Outputs of the traced program, which are those of the signature where it gives them."""
    made = tuple(
        Tensor(
            name=name,
            datatype=datatype_of(aval.dtype, f"output {name}"),
            shape=tuple(s if isinstance(s, int) else str(s) for s in aval.shape),
        )
        for name, aval in zip(names, avals, strict=True)
    )
    for want, got in zip(outputs, made, strict=bool(outputs)):
        if isinstance(want, Tensor) and want != got:
            raise ServeError(
                f"signature output {want.name}",
                found=str(got),
                expected=str(want),
                fix="the function returns what was found",
            )
    return made


def _named(result: PyTree, declared: list[str]) -> tuple[list[str], list[Any]]:
    """Names and values of a function's results, in the signature's order if it names them."""
    if isinstance(result, Mapping):
        found = dict(result)
        order = declared or list(found)
        if set(order) != set(found):
            raise ServeError(
                "signature outputs",
                found=", ".join(order),
                expected=f"what the function returns: {', '.join(found)}",
            )
        return order, [_array(found[name], name) for name in order]
    values = list(result) if isinstance(result, (tuple, list)) else [result]
    default = ["output"] if len(values) == 1 else [f"output_{i}" for i in range(len(values))]
    names = declared or default
    if len(names) != len(values):
        raise ServeError(
            "signature outputs",
            found=f"{len(names)}: {', '.join(names)}",
            expected=f"{len(values)}, as the function returns",
        )
    return names, [_array(value, name) for name, value in zip(names, values, strict=True)]


def _array(value: PyTree, name: str) -> PyTree:
    """A result that is an array or a number, as an array."""
    if not isinstance(value, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
        raise ServeError(
            f"output {name}",
            found=f"{type(value).__name__}, not an array",
            expected="an array for each output: return a tuple, or a dict by output name",
        )
    return jnp.asarray(value)


def _check_tables(inputs: Sequence[Tensor], tables: Mapping[str, Sequence[int]]) -> None:
    """Refuse sizes of what is not a symbol of the inputs, or is the batch."""
    symbols = {size for t in inputs for size in t.shape if isinstance(size, str)} - {BATCH}
    for name, table in tables.items():
        if name not in symbols or not table or table[0] < 1:
            raise ServeError(
                f"sizes of {name}",
                found=list(table),
                expected=f"sizes of one or more for {' or '.join(sorted(symbols)) or 'no symbol'}",
            )


def _check_padding(signature: Signature, tables: Mapping[str, Sequence[int]]) -> None:
    """Refuse what a server could not crop: sizes computed from a padded size."""
    padded = {*tables, *([BATCH] if signature.batched else [])}
    for tensor in signature.outputs:
        for size in tensor.shape:
            used = set(re.findall(r"[a-z_]\w*", str(size))) & padded
            if used and size not in padded:
                raise ServeError(
                    f"signature output {tensor.name}",
                    found=f"a size of {size}",
                    expected=f"{' or '.join(sorted(used))} alone, since inputs are padded along it",
                )


def _examples(
    signature: Signature, tables: Mapping[str, Sequence[int]], given: Examples
) -> list[dict[str, np.ndarray]]:
    """The golden inputs, checked against the signature."""
    draw = np.random.default_rng(0)
    if not given:
        plain = {name: max(1, table[0] - 1) for name, table in tables.items()}
        given = [
            {t.name: _draw(draw, t, {BATCH: rows, **plain}) for t in signature.inputs}
            for rows in ((1, 3) if signature.batched else (1,))
        ]
    cases = []
    for case in given:
        names = {tensor.name for tensor in signature.inputs}
        if set(case) != names:
            raise ServeError("golden inputs", found=", ".join(case), expected=", ".join(names))
        arrays = {}
        for tensor in signature.inputs:
            array = np.asarray(case[tensor.name])
            if array.dtype != tensor.dtype:
                raise ServeError(
                    f"golden input {tensor.name}",
                    found=f"type {array.dtype}",
                    expected=str(tensor.dtype),
                )
            arrays[tensor.name] = array
        signature.sizes({name: array.shape for name, array in arrays.items()})
        cases.append(arrays)
    return cases


def _draw(draw: np.random.Generator, tensor: Tensor, sizes: Mapping[str, int]) -> np.ndarray:
    shape = [sizes.get(s, _OPEN_SIZE) if isinstance(s, str) else s for s in tensor.shape]
    if tensor.dtype.kind in "iu" and tensor.dtype.itemsize == 1:
        low, high = np.iinfo(tensor.dtype).min, np.iinfo(tensor.dtype).max
        return draw.integers(low, high, shape, tensor.dtype, endpoint=True)
    if tensor.dtype.kind in "biu":
        return draw.integers(0, 2, shape).astype(tensor.dtype)
    return draw.standard_normal(shape).astype(tensor.dtype)


def _record(
    directory: Path, number: int, inputs: JsonObject, result: PyTree, signature: Signature
) -> None:
    names = [tensor.name for tensor in signature.outputs]
    _, values = _named(result, names)
    pairs = [(f"inputs/{name}", array) for name, array in inputs.items()]
    pairs += [(f"outputs/{name}", np.asarray(v)) for name, v in zip(names, values, strict=True)]
    write_sharded(directory, pairs, stem=f"case-{number}")


def _tools(exported: Any) -> dict[str, str]:
    versions = {
        name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy", "safetensors")
    }
    return {
        "ziggurat": __version__,
        "python": python_platform.python_version(),
        "calling_convention": str(exported.calling_convention_version),
        **versions,
    }
