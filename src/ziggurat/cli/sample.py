"""``ziggurat sample``: draw images from a diffusion model."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ziggurat.cli import console
from ziggurat.core.errors import ConfigError

if TYPE_CHECKING:
    from ziggurat.models.diffusion import Sampling

EXAMPLE = """ziggurat sample runs/digits-flow --class 3 --grid three.png
  ziggurat sample runs/digits-flow --sampler dpm++ --steps 20 --guidance 2 --count 100 \\
    --images digits.npz"""


def main(args: list[str]) -> int:
    """Run ``ziggurat sample``."""
    return console.run(sample, args, "ziggurat sample", EXAMPLE)


def sample(
    model: Path,
    /,
    classes: Annotated[tuple[str, ...], tyro.conf.arg(name="class")] = (),
    grid: Path | None = None,
    images: Path | None = None,
    count: int = 8,
    sampler: Literal["ddim", "ddpm", "euler", "dpm++"] | None = None,
    steps: int | None = None,
    guidance: float = 1.0,
    eta: float = 0.0,
    seed: int = 0,
    batch: int = 64,
    last: bool = False,
    compute: Literal["float32", "bfloat16"] = "float32",
) -> int:
    """Draw images of classes. The same seed gives the same images, whatever the batch.

    Args:
        model: a run, a checkpoint step, or a directory of diffusers (model_index.json).
        classes: classes by number or name; default all of them.
        grid: PNG file for one picture, a row for each class.
        images: .npz file for the numbers: images (0 to 1), labels and seeds.
        count: images of each class.
        sampler: default euler for a flow, else dpm++, or what the directory says.
        steps: calls of the model for an image; default the sampler's 25, or 50 of a directory.
        guidance: how much more of the class than without it: 1 is the model as it is.
        eta: fresh noise of ddim, 0 to 1.
        seed: image n of the call has the seed plus n.
        batch: most images at a time.
        last: the last parameters, also where the run kept an average of them.
        compute: type of matmuls.
    """
    _check(grid, images, count, batch, seed)
    import numpy as np

    from ziggurat.models.loading import pretrained_pipeline
    from ziggurat.nn.precision import Precision

    precision = Precision(compute=compute)
    pipeline = pretrained_pipeline.load(model, precision=precision, averaged=not last)
    labels = [pipeline.label_of(name) for name in classes]
    labels = labels or list(range(pipeline.model.config.classes))
    sampling = _sampling(pipeline.default_sampling, sampler, steps, eta)
    wanted = np.repeat(np.array(labels, np.int32), count)
    seeds = (seed + np.arange(len(wanted))).astype(np.int32)
    start = time.perf_counter()
    drawn = _draw(pipeline, sampling, guidance, wanted, seeds, batch)
    took, out = time.perf_counter() - start, console.output()
    kinds = f"{len(labels)} {'class' if len(labels) == 1 else 'classes'}"
    how = f"{sampling.method}, {sampling.steps} steps, guidance {guidance:g}"
    out.print(f"{len(drawn)} images of {kinds} in {took:.1f} s: {how}")
    if grid is not None:
        from ziggurat.data.image_grid import grid as tiles
        from ziggurat.data.image_grid import write_png

        write_png(grid, tiles(drawn, columns=count))
        out.print(f"written: {grid}", soft_wrap=True)
    if images is not None:
        _write_numbers(images, images=drawn, labels=wanted, seeds=seeds)
        out.print(f"written: {images}", soft_wrap=True)
    return 0


def _sampling(stored: "Sampling", sampler: str | None, steps: int | None, eta: float) -> "Sampling":
    """The stored settings with those of the command line."""
    from ziggurat.core import config

    plain = config.to_plain(stored)
    if sampler is not None and sampler != stored.method:
        plain = {"method": sampler, "steps": stored.steps}
    changes = {"steps": steps} if steps is not None else {}
    return config.from_plain(type(stored), plain | changes | {"eta": eta}, "command line")


def _check(grid: Path | None, images: Path | None, count: int, batch: int, seed: int) -> None:
    if grid is None and images is None:
        raise ConfigError(
            "sample", found="neither --grid nor --images", expected="where to write",
            fix="e.g. --grid out.png",
        )  # fmt: skip
    for option, path, suffix in (("--grid", grid, ".png"), ("--images", images, ".npz")):
        if path is not None and path.suffix.lower() != suffix:
            raise ConfigError(option, found=path.name, expected=f"a name that ends with {suffix}")
    for option, value in (("--count", count), ("--batch", batch)):
        if value < 1:
            raise ConfigError(option, found=value, expected="a number >= 1")
    if not 0 <= seed < 2**31 - 2**24:
        raise ConfigError("--seed", found=seed, expected=f"0 to {2**31 - 2**24 - 1}")


def _draw(
    pipeline: Any, sampling: Any, guidance: float, labels: Any, seeds: Any, batch: int
) -> Any:
    """All images, some at a time; the last ones are filled up so that one program serves all."""
    import jax
    import numpy as np
    from rich.console import Console
    from rich.progress import Progress

    batch = min(batch, len(labels))
    draw = jax.jit(pipeline.draw(sampling, guidance))
    drawn = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("drawing", total=len(labels))
        for first in range(0, len(labels), batch):
            rows = slice(first, first + batch)
            fill = batch - len(labels[rows])
            part = draw(
                pipeline.weights, np.pad(labels[rows], (0, fill)), np.pad(seeds[rows], (0, fill))
            )
            drawn.append(np.asarray(part)[: batch - fill])
            progress.advance(task, batch - fill)
    return np.concatenate(drawn)


def _write_numbers(path: Path, **arrays: Any) -> None:
    import io

    import numpy as np

    from ziggurat.core import atomic

    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_file(path, content.getvalue())
