"""``ziggurat bundle``: make a hermetic bundle of a JAX function, look into one, verify it."""

import importlib
import json as json_text
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from ziggurat.cli import console
from ziggurat.cli.bundle_encoder import EXAMPLE as ENCODER_EXAMPLE
from ziggurat.cli.bundle_encoder import encoder
from ziggurat.cli.bundle_images import EXAMPLE as IMAGES_EXAMPLE
from ziggurat.cli.bundle_images import images
from ziggurat.cli.options import key_value
from ziggurat.core.errors import ConfigError, ModelError, ServeError, ZigguratError, did_you_mean

EXAMPLES = {
    "export": "ziggurat bundle export scorer:score models/scorer/1 --params weights.safetensors "
    '\\\n    --signature "x:FP32[b,4] -> score"',
    "encoder": ENCODER_EXAMPLE,
    "images": IMAGES_EXAMPLE,
    "inspect": "ziggurat bundle inspect models/scorer/1",
    "verify": "ziggurat bundle verify models/scorer/1 --replay",
}


def export(
    target: str,
    path: Path,
    /,
    signature: str,
    params: str | None = None,
    factory: bool = False,
    sizes: tuple[str, ...] = (),
    golden: tuple[Path, ...] = (),
    platforms: tuple[Literal["cpu", "cuda", "tpu", "rocm"], ...] = ("cpu", "cuda", "tpu"),
    label: tuple[str, ...] = (),
    rtol: float | None = None,
) -> int:
    """Write a bundle that serves without the code that made it.

    The target is imported, traced once for every platform and proved: the bundle must reproduce it
    on recorded inputs. If rows of a batch depend on one another, or padding changes results, the
    bundle is served without joining requests, or without padding, and this is printed.

    Args:
        target: MODULE:NAME, looked for also in the current directory: a function of (params,
            *inputs) with --params, of the inputs without, or a module that holds its weights.
        path: new directory, REPOSITORY/MODEL/VERSION for serving.
        signature: such as "tokens:INT32[b,t] mask:INT32[b,t] -> embedding"; b is the batch.
        params: a safetensors file or directory, a checkpoint step, or MODULE:NAME.
        factory: call the target without arguments to get the function, or (function, params).
        sizes: t=16,32,64: sizes to which a dimension other than b is padded with zeros.
        golden: .npz or .safetensors files, each one set of inputs to record; default random ones.
        platforms: what the program is lowered for.
        label: KEY=VALUE, shown by inspect.
        rtol: how near a replay must come, relative to an output's largest magnitude.
    """
    given: Any = _imported(target)
    weights = _params(params)
    if factory:
        made: Any = given()
        if isinstance(made, tuple) and len(made) == 2:
            if weights is not None:
                raise ConfigError("--params", found=params, expected="none: the factory gave some")
            given, weights = made
        else:
            given = made
    from ziggurat.serve.predict import export as write
    from ziggurat.serve.predict import verify as check

    write(
        given,
        weights,
        signature,
        path,
        sizes={name: _sizes(name, text) for name, text in map(key_value("--sizes"), sizes)},
        golden=[_arrays(file) for file in golden],
        platforms=platforms,
        labels=dict(map(key_value("--label"), label)),
        rtol=rtol,
    )
    manifest, digest = check(path)
    out = console.output()
    for tensor in (*manifest.signature.inputs, "->", *manifest.signature.outputs):
        out.print(str(tensor), markup=False, highlight=False)
    for name, reason in manifest.exact.items():
        out.print(f"{name}: {_served(name)}: {reason}", markup=False, soft_wrap=True)
    out.print(f"written: {path} ({digest[:16]})", soft_wrap=True)
    return 0


def inspect(path: Path, /, json: bool = False) -> int:
    """Show what a bundle takes and gives, what it holds and what made it.

    Args:
        path: the bundle's directory.
        json: print the manifest.
    """
    from ziggurat.core import config
    from ziggurat.serve.predict import manifest as manifests

    manifest, digest = manifests.read(path)
    out = console.output()
    if json:
        plain = {**config.to_plain(manifest), "digest": digest}
        sys.stdout.write(json_text.dumps(plain, indent=1) + "\n")
        return 0
    size = sum(entry.bytes for name, entry in manifest.files.items() if name.startswith("weights/"))
    rows = [
        ("inputs", " ".join(map(str, manifest.signature.inputs))),
        ("outputs", " ".join(map(str, manifest.signature.outputs))),
        *((f"sizes of {name}", ", ".join(map(str, s))) for name, s in manifest.sizes.items()),
        *((f"{n} is exact", f"{_served(n)}: {r}") for n, r in manifest.served_exactly.items()),
        ("platforms", ", ".join(manifest.platforms)),
        ("weights", f"{len(manifest.weights)} arrays, {size:,} bytes"),
        ("golden pairs", f"{manifest.golden.cases}, recorded on {manifest.golden.platform}"),
        ("made by", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())),
        *((f"label {name}", text) for name, text in manifest.labels.items()),
        ("digest", digest),
    ]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        out.print(f"{name:<{width}}  {text}", markup=False, highlight=False, soft_wrap=True)
    return 0


def verify(path: Path, /, replay: bool = False) -> int:
    """Compare every byte of a bundle with its manifest; exit code 2 if one differs.

    Args:
        path: the bundle's directory.
        replay: also compile it here and reproduce its golden pairs.
    """
    from ziggurat.serve.predict import LoadedBundle
    from ziggurat.serve.predict import verify as check

    manifest, digest = check(path)
    said = f"{len(manifest.files) + 1} files intact"
    if replay:
        LoadedBundle.load(path)
        said += f", {manifest.golden.cases} golden pairs reproduced"
    console.output().print(f"{path}: {said} ({digest[:16]})", soft_wrap=True, highlight=False)
    return 0


COMMANDS: dict[str, tuple[Callable[..., int], str]] = {
    "export": (export, "trace a function and write it with its weights"),
    "encoder": (encoder, "write an encoder of texts or images: tokens or pixels to vectors"),
    "images": (images, "write a diffusion model with its sampler: class ids and seeds to images"),
    "inspect": (inspect, "show signature, weights, platforms and versions"),
    "verify": (verify, "check every byte, and with --replay the outputs"),
}


def main(args: list[str]) -> int:
    """Run one command of ``ziggurat bundle``."""
    if not args or args[0] in ("-h", "--help"):
        sys.stdout.write(help_text())
        raise SystemExit(0)
    command, *rest = args
    if command not in COMMANDS:
        raise ConfigError(
            "bundle",
            found=repr(command),
            expected="one of " + ", ".join(COMMANDS),
            fix=did_you_mean(command, COMMANDS) or "see ziggurat bundle --help",
        )
    return console.run(COMMANDS[command][0], rest, f"ziggurat bundle {command}", EXAMPLES[command])


def help_text() -> str:
    """The text of ``ziggurat bundle --help``."""
    lines = "\n".join(f"  {command:<8}  {summary}" for command, (_, summary) in COMMANDS.items())
    return f"""\
usage: ziggurat bundle COMMAND [OPTIONS]

Hermetic bundles of JAX functions, served by ziggurat serve REPOSITORY.

commands:
{lines}

After a command, --help shows its options.

example:
  {EXAMPLES["export"]}
"""


def _served(name: str) -> str:
    """How a dimension is served along which nothing may be joined or padded."""
    return "one request at a time" if name == "b" else "not padded, each size compiled"


def _imported(target: str) -> Any:
    """The object that MODULE:NAME means.

    Raises:
        ModelError: there is no such module or name, or the module fails.
    """
    module, colon, name = target.partition(":")
    if not colon or not module or not name:
        raise ModelError("target", found=repr(target), expected="MODULE:NAME, such as scorer:score")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ZigguratError:
        raise
    except Exception as error:  # whatever the user's module raises
        raise ModelError(f"target {target}", found=f"{type(error).__name__}: {error}",
                         expected="an importable MODULE:NAME") from error  # fmt: skip
    return found


def _params(params: str | None) -> Any:
    """Weights as nested dicts, from where they are."""
    if params is None:
        return None
    path = Path(params)
    if not path.exists():
        if ":" in params:
            return _imported(params)
        raise ModelError("--params", found=f"no file {params}",
                         expected="safetensors, a checkpoint step or MODULE:NAME")  # fmt: skip
    from ziggurat.core.pytrees import nested

    if path.is_file() or list(path.glob("*.safetensors*")):
        from ziggurat.formats import SafetensorsDirectory

        stored = SafetensorsDirectory(path)
        return nested({name: stored.read(name) for name in stored})
    from ziggurat.checkpoint import read_arrays

    return read_arrays(path, "params")


def _arrays(file: Path) -> dict[str, Any]:
    """One set of golden inputs."""
    import numpy as np

    if file.suffix == ".npz":
        try:
            with np.load(file, allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, ValueError) as error:
            raise ServeError(f"--golden {file}", found=error, expected="an .npz file") from None
    from ziggurat.formats import SafetensorsDirectory

    stored = SafetensorsDirectory(file)
    return {name: stored.read(name) for name in stored}


def _sizes(name: str, text: str) -> Sequence[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ConfigError("--sizes", found=f"{name}={text}", expected="such as t=16,32,64")
    return [int(part) for part in parts]
