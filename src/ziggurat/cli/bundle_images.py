"""``ziggurat bundle images``: a diffusion model with its sampler as one bundle."""

from pathlib import Path
from typing import Literal

from ziggurat.cli import console
from ziggurat.cli.options import key_value

EXAMPLE = "ziggurat bundle images runs/digits-flow models/digits/1 --steps 20 --guidance 2"
TOLERANCE = 1e-3
"""How near a replay must come: a sampler's steps enlarge what another order of sums changes."""


def images(
    model: Path,
    path: Path,
    /,
    sampler: Literal["ddim", "ddpm", "euler", "dpm++"] | None = None,
    steps: int | None = None,
    guidance: float = 1.0,
    platforms: tuple[Literal["cpu", "cuda", "tpu", "rocm"], ...] = ("cpu", "cuda", "tpu"),
    label: tuple[str, ...] = (),
) -> int:
    """Write a diffusion model and its sampler as a bundle: class ids and seeds in, images out.

    The whole sampler is one program, so the server knows nothing of diffusion. An image depends on
    its own class and seed alone, and is the one that ziggurat sample draws of them.

    Args:
        model: a run, a checkpoint step, or a directory of diffusers.
        path: new directory, REPOSITORY/MODEL/VERSION for serving.
        sampler: as of ziggurat sample.
        steps: calls of the model for an image.
        guidance: how much more of the class than without it.
        platforms: what the program is lowered for.
        label: KEY=VALUE, shown by inspect.
    """
    import numpy as np

    from ziggurat.core import config
    from ziggurat.models.diffusion import Sampling
    from ziggurat.models.loading import pretrained_pipeline
    from ziggurat.serve.predict import export, verify

    pipeline = pretrained_pipeline.load(model)
    stored = pipeline.default_sampling
    if sampler is not None and sampler != stored.method:
        stored = Sampling(method=sampler, steps=stored.steps)
    changes = {} if steps is None else {"steps": steps}
    sampling = config.from_plain(Sampling, config.to_plain(stored) | changes, "command line")
    size = ",".join(map(str, pipeline.image_shape))
    classes = pipeline.model.config.classes
    golden = [
        {
            "label": (np.arange(rows) % classes).astype(np.int32),
            "seed": np.arange(rows, dtype=np.int32),
        }
        for rows in (1, 3)
    ]
    said = {"sampler": sampling.method, "steps": str(sampling.steps), "guidance": f"{guidance:g}"}
    names = {"classes": ",".join(pipeline.around.labels)} if pipeline.around.labels else {}
    export(
        pipeline.draw(sampling, guidance),
        pipeline.weights,
        f"label:INT32[b] seed:INT32[b] -> image:FP32[b,{size}]",
        path,
        golden=golden,
        platforms=platforms,
        labels=said | names | dict(map(key_value("--label"), label)),
        rtol=TOLERANCE,
    )
    manifest, digest = verify(path)
    out = console.output()
    for tensor in (*manifest.signature.inputs, "->", *manifest.signature.outputs):
        out.print(str(tensor), markup=False, highlight=False)
    out.print(f"written: {path} ({digest[:16]})", soft_wrap=True)
    return 0
