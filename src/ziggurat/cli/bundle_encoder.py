"""``ziggurat bundle encoder``: an encoder of texts or of images as one bundle."""

from pathlib import Path
from typing import Literal

from ziggurat.cli import console
from ziggurat.cli.options import key_value
from ziggurat.core.errors import ModelError

EXAMPLE = "ziggurat bundle encoder models/vit models/vit-bundle/1"


def encoder(
    model: Path,
    path: Path,
    /,
    sizes: tuple[int, ...] = (16, 32, 64, 128, 256, 512),
    platforms: tuple[Literal["cpu", "cuda", "tpu", "rocm"], ...] = ("cpu", "cuda", "tpu"),
    label: tuple[str, ...] = (),
) -> int:
    """Write an encoder as a bundle: token ids and a mask, or pixels, to vectors or logits.

    Pixels are those of the model's image processor, channels first. Of a model with two
    towers, the one for images is written.

    Args:
        model: a Hugging Face directory, or a checkpoint that import made of one.
        path: new directory, REPOSITORY/MODEL/VERSION for serving.
        sizes: lengths in tokens to which texts are padded, as far as the encoder takes them.
        platforms: what the program is lowered for.
        label: KEY=VALUE, shown by inspect.

    Raises:
        ModelError: the directory holds no encoder.
    """
    from ziggurat.models import image_embedder, text_embedder
    from ziggurat.models.loading import pretrained_encoder, pretrained_vision
    from ziggurat.serve.predict import export, verify

    padded: dict[str, tuple[int, ...]] = {}
    if model.is_dir() and pretrained_encoder.is_encoder(model):
        texts = pretrained_encoder.load(model)
        function, weights, signature = text_embedder.bundle_parts(texts)
        longest = texts.sentence.max_length
        padded["t"] = (*(size for size in sorted(set(sizes)) if size < longest), longest)
    elif model.is_dir() and pretrained_vision.is_vision(model):
        images = pretrained_vision.load(model)
        function, weights, signature = image_embedder.bundle_parts(images)
    else:
        raise ModelError(
            f"encoder {model}",
            found="no encoder of texts or images" if model.exists() else "no such directory",
            expected="a Hugging Face directory, or a checkpoint of one",
        )
    labels = dict(map(key_value("--label"), label))
    export(function, weights, signature, path, sizes=padded, platforms=platforms, labels=labels)
    manifest, digest = verify(path)
    out = console.output()
    for tensor in (*manifest.signature.inputs, "->", *manifest.signature.outputs):
        out.print(str(tensor), markup=False, highlight=False)
    out.print(f"written: {path} ({digest[:16]})", soft_wrap=True)
    return 0
