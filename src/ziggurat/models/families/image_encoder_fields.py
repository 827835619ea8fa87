"""Config fields, keys of ``config.json`` and weight names that encoders of images share."""

from collections.abc import Mapping
from typing import Any

from ziggurat.core import config
from ziggurat.core.errors import ModelError
from ziggurat.models.conversion.hf_config import HFConfig
from ziggurat.models.conversion.weight_names import WeightName
from ziggurat.models.families.encoder_fields import EncoderFields
from ziggurat.nn.encoder_inputs import PatchInputConfig

IMAGE_TASKS = ("headless", "image")
"""Tasks of the classes that families of image encoders read."""


@config.node
class ImageEncoderFields(EncoderFields):
    """Dimensions of an encoder of images."""

    image_size: tuple[int, int] = (224, 224)
    """Height and width in pixels that the learned positions are for."""
    patch_size: tuple[int, int] = (16, 16)
    """Height and width in pixels of a patch."""
    channels: int = 3
    """Colour channels."""

    def __post_init__(self):
        EncoderFields.__post_init__(self)
        whole = all(0 < p <= size for p, size in zip(self.patch_size, self.image_size))
        found = [list(self.image_size), list(self.patch_size)]
        config.require(whole, "image_size, patch_size", found, "patches that fit into the image")
        config.require(self.channels >= 1, "channels", self.channels, "a number >= 1")
        kinds = ("none", "sequence")
        config.require(self.head in kinds, "head", self.head, " or ".join(kinds))

    def patches(self, **switches: Any) -> PatchInputConfig:
        """The input."""
        return PatchInputConfig(
            channels=self.channels, image=self.image_size, patch=self.patch_size, **switches
        )


def read_image(hf: HFConfig) -> dict[str, Any]:
    """The image's dimensions.

    Raises:
        ModelError: a size is neither a number nor two of them.
    """
    return {
        "image_size": _pair(hf, "image_size"),
        "patch_size": _pair(hf, "patch_size"),
        "channels": hf.get("num_channels"),
    }


def hf_image(settings: ImageEncoderFields) -> dict[str, Any]:
    """The reverse of :func:`read_image`."""
    sizes = {"image_size": settings.image_size, "patch_size": settings.patch_size}
    values = {key: h if h == w else [h, w] for key, (h, w) in sizes.items()}
    return values | {"num_channels": settings.channels}


def _pair(hf: HFConfig, key: str) -> tuple[int, int]:
    value = hf.get(key)
    pair = value if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or not all(isinstance(x, int) and not isinstance(x, bool) for x in pair):
        raise ModelError(f"config.json: {key}", found=repr(value), expected="a number, or two")
    return pair[0], pair[1]


def patch_names(
    settings: ImageEncoderFields, table: Mapping[str, str], *, bias: bool = True
) -> list[WeightName]:
    """Names of an input of patches.

    Args:
        settings: the family's config.
        table: theirs by ours: ``projection`` (a convolution), ``positions`` and the learned tokens.
        bias: whether the convolution has one.
    """
    high, wide = settings.patch_size
    width, names = settings.d_model, []
    for ours, theirs in table.items():
        if ours == "projection":
            stored = (width, settings.channels, high, wide)
            names.append(
                WeightName(
                    "input.projection.kernel",
                    f"{theirs}.weight",
                    transpose=True,
                    stored_shape=stored,
                )
            )
            names += [WeightName("input.projection.bias", f"{theirs}.bias")] if bias else []
            continue
        rows = _positions(settings, "class_token" in table) if ours == "positions" else 1
        rows = getattr(settings, "registers", rows) if ours == "registers" else rows
        names.append(WeightName(f"input.{ours}", theirs, stored_shape=(1, rows, width)))
    return names


def _positions(settings: ImageEncoderFields, class_token: bool) -> int:
    rows, columns = settings.patches().grid
    return rows * columns + class_token
