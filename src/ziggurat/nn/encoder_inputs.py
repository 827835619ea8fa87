"""Inputs of encoders: token ids or image patches to the states that the first block reads."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from ziggurat.core.errors import ShapeError
from ziggurat.nn.linear import Embedding, Linear, add, constant, parameter
from ziggurat.nn.norm import NormConfig
from ziggurat.nn.precision import Precision


@runtime_checkable
class EncoderInputConfig(Protocol):
    """Interface of an encoder's input: what it takes, and the module that embeds it."""

    def build(self, width: int, std: float, precision: Precision, rngs: nnx.Rngs) -> Any:
        """The module: ``(inputs, mask, **details) -> states [b, t, d]``."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenInputConfig:
    """Config of a :class:`TokenInput`."""

    vocab_size: int
    embedding_width: int | None = None
    """Width of the tables and the norm, if it is another than that of the states: a layer leads
    from one to the other (ELECTRA)."""
    positions: int | None = None
    """Rows of a table of learned positions; ``None``: positions are rotary or relative."""
    padding_id: int | None = None
    """If given, positions count the tokens other than this one, beginning behind its row, and it
    has its own row (RoBERTa); ``None``: tokens are counted from row 0."""
    token_types: int = 0
    """Rows of a table of token types, which tell a first text from a second; 0: no table."""
    norm: NormConfig | None = None
    """Norm of the sum."""
    norm_projected: bool = False
    """The layer from ``embedding_width`` has no bias, and the norm stands behind it (DeBERTa)."""

    @property
    def max_length(self) -> int | None:
        """Longest sequence in tokens; ``None``: no table of positions limits it."""
        if self.positions is None or self.padding_id is None:
            return self.positions
        return self.positions - self.padding_id - 1

    def build(self, width: int, std: float, precision: Precision, rngs: nnx.Rngs) -> "TokenInput":
        return TokenInput(self, width, std, precision, rngs)


class TokenInput(nnx.Module):
    """Token ids to the sum of their embeddings, learned positions and token types, normalised."""

    def __init__(
        self, c: TokenInputConfig, width: int, std: float, precision: Precision, rngs: nnx.Rngs
    ):
        self.config = c
        narrow = c.embedding_width or width

        def table(rows: int | None, axis: str | None) -> Embedding | None:
            if not rows:
                return None
            made = Embedding(rows, narrow, std=std, precision=precision, rngs=rngs)
            made.table.set_metadata(axes=(axis, "embed"))
            return made

        self.embedding = Embedding(c.vocab_size, narrow, std=std, precision=precision, rngs=rngs)
        self.positions = table(c.positions, None)
        self.token_types = table(c.token_types, None)
        last = c.norm_projected
        self.norm = c.norm and c.norm.build(width if last else narrow, precision)
        axes = ("embed", "mlp")
        self.projection = (
            Linear(narrow, width, axes, bias=not last, std=std, precision=precision, rngs=rngs)
            if c.embedding_width
            else None
        )

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        mask: Int[Array, "b t"] | None = None,
        token_types: Int[Array, "b t"] | None = None,
    ) -> Float[Array, "b t d"]:
        """States of tokens.

        Args:
            tokens: token ids, padded on the right with anything.
            mask: 1 for a token, 0 for padding.
            token_types: which text each token is of; default the first.

        Raises:
            ShapeError: more tokens than learned positions, or token types without a table.
        """
        length, longest = tokens.shape[1], self.config.max_length
        if longest is not None and isinstance(length, int) and length > longest:
            raise ShapeError("encoder", found=f"{length} tokens", expected=f"at most {longest}")
        x = self.embedding(tokens)
        if self.token_types is not None:
            given = jnp.zeros_like(tokens) if token_types is None else token_types
            x = x + self.token_types(given)
        elif token_types is not None:
            raise ShapeError(
                "encoder", found="token types", expected="none: it has no table of them"
            )
        if self.positions is not None:
            x = x + self.positions(self._rows(tokens, mask))
        parts = [self.norm, self.projection]
        for part in reversed(parts) if self.config.norm_projected else parts:
            x = x if part is None else part(x)
        return x

    def _rows(self, tokens: Int[Array, "b t"], mask: Int[Array, "b t"] | None) -> Int[Array, "b t"]:
        """The row of the table of positions for each token."""
        padding = self.config.padding_id
        if padding is None:
            return jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        counted = tokens != padding
        counted = counted if mask is None else counted & (mask > 0)
        return jnp.where(counted, jnp.cumsum(counted, axis=1, dtype=jnp.int32) + padding, padding)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatchInputConfig:
    """Config of a :class:`PatchInput`."""

    channels: int
    """Colour channels."""
    image: tuple[int, int]
    """Height and width in pixels of the images that the table of positions is for."""
    patch: tuple[int, int]
    """Height and width in pixels of a patch."""
    bias: bool = True
    """A bias on the projection of patches."""
    class_token: bool = True
    """A learned token before the patches, with a position of its own."""
    learned_positions: bool = True
    """A table of positions is added; otherwise layers rotate by :meth:`PatchInput.places`
    (DINOv3)."""
    registers: int = 0
    """Learned tokens between the class token and the patches, without positions (Darcet et al.
    2023, https://arxiv.org/abs/2309.16588)."""
    mask_token: bool = False
    """A learned vector that stands for hidden patches."""
    norm: NormConfig | None = None
    """Norm of the sum (CLIP)."""
    antialias: bool = False
    """Positions for smaller images are averages of those they stand for (DINOv2 registers)."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in the table of positions."""
        return self.image[0] // self.patch[0], self.image[1] // self.patch[1]

    def build(self, width: int, std: float, precision: Precision, rngs: nnx.Rngs) -> "PatchInput":
        return PatchInput(self, width, std, precision, rngs)


class PatchInput(nnx.Module):
    """Images to patches with learned positions, after a class token and registers.

    The positions of images of another size are interpolated.

    Paper: Dosovitskiy et al. 2020 (ViT), https://arxiv.org/abs/2010.11929.
    """

    def __init__(
        self, c: PatchInputConfig, width: int, std: float, precision: Precision, rngs: nnx.Rngs
    ):
        self.config, self.compute = c, precision.compute

        def tokens(count: int) -> nnx.Param | None:
            shape = (count, width)
            return parameter(rngs, shape, (None, "embed"), std, precision) if count else None

        pixels, rows = c.channels * c.patch[0] * c.patch[1], c.grid[0] * c.grid[1]
        self.projection = Linear(
            pixels, width, (None, "embed"), bias=c.bias, std=std, precision=precision, rngs=rngs
        )
        self.positions = tokens(rows + c.class_token) if c.learned_positions else None
        self.class_token = tokens(int(c.class_token))
        self.registers = tokens(c.registers)
        shape, axes = (1, width), (None, "embed")
        self.mask_token = constant(0.0, shape, axes, precision) if c.mask_token else None
        self.norm = c.norm and c.norm.build(width, precision)

    def __call__(
        self,
        pixels: Float[Array, "b c h w"],
        mask: None = None,
        hidden_patches: Bool[Array, "b n"] | None = None,
    ) -> Float[Array, "b t d"]:
        """States of the class token, the registers and the patches, row by row.

        Args:
            pixels: normalised images; pixels beyond the last whole patch are dropped.
            mask: images have no padding.
            hidden_patches: patches that the mask token stands for.

        Raises:
            ShapeError: another number of channels, an image smaller than a patch, padding, or
                hidden patches without a mask token.
        """
        c = self.config
        channels, height, width = pixels.shape[1:]
        grid = height // c.patch[0], width // c.patch[1]
        if channels != c.channels or 0 in grid:
            raise ShapeError(
                "images",
                found=f"{channels} channels of {height} x {width}",
                expected=f"{c.channels} channels of at least {c.patch[0]} x {c.patch[1]}",
            )
        if mask is not None:
            raise ShapeError("images", found="a mask of padding", expected="none")
        x = self.projection(patches(pixels.astype(self.compute), c.patch))
        if hidden_patches is not None:
            if self.mask_token is None:
                raise ShapeError("images", found="hidden patches", expected="none: no mask token")
            token = self.mask_token[...].astype(x.dtype)[None]
            x = jnp.where(hidden_patches[..., None], token, x)
        first = None if self.class_token is None else self.class_token[...]
        if self.positions is not None:
            table = self.positions[...]
            ahead, places = table[: c.class_token], table[c.class_token :]
            x = add(x, resized_positions(places, c.grid, grid, antialias=c.antialias)[None])
            first = None if first is None else first + ahead
        parts = [x]
        if self.registers is not None:
            parts.insert(0, self._repeated(self.registers[...], x))
        if first is not None:
            parts.insert(0, self._repeated(first, x))
        x = jnp.concatenate(parts, axis=1)
        return x if self.norm is None else self.norm(x)

    def places(self, pixels: Float[Array, "b c h w"]) -> Float[Array, "b t 2"]:
        r"""Row and column of each token, as angles by which frequency 1 turns: those of patches go
        from :math:`-2\pi` to :math:`2\pi` over the image, whatever its size; other tokens have 0.

        Paper: Siméoni et al. 2025 (DINOv3), https://arxiv.org/abs/2508.10104, section 3.2.
        """
        c = self.config
        grid = (size // patch for size, patch in zip(pixels.shape[2:], c.patch))
        sides = [2 * (jnp.arange(n, dtype=jnp.float32) + 0.5) / n - 1 for n in grid]
        centres = jnp.stack(jnp.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2)
        ahead = jnp.zeros((c.class_token + c.registers, 2), centres.dtype)
        places = 2 * np.pi * jnp.concatenate([ahead, centres])
        return jnp.broadcast_to(places[None], (pixels.shape[0], *places.shape))

    def _repeated(
        self, tokens: Float[Array, "n d"], x: Float[Array, "b m d"]
    ) -> Float[Array, "b n d"]:
        """Tokens for each row of ``x``."""
        return jnp.broadcast_to(tokens.astype(self.compute)[None], (x.shape[0], *tokens.shape))


def patches(pixels: Float[Array, "b c h w"], size: tuple[int, int]) -> Float[Array, "b n p"]:
    """Patches of images row by row, each flattened by channel, then row, then column.

    >>> patches(jnp.arange(16.0).reshape(1, 1, 4, 4), (2, 2))[0, 1].tolist()
    [2.0, 3.0, 6.0, 7.0]
    """
    b, c = pixels.shape[:2]
    high, wide = size
    rows, columns = pixels.shape[2] // high, pixels.shape[3] // wide
    whole = pixels[:, :, : rows * high, : columns * wide]
    split = whole.reshape(b, c, rows, high, columns, wide).transpose(0, 2, 4, 1, 3, 5)
    return split.reshape(b, rows * columns, c * high * wide)


def resized_positions(
    table: Float[Array, "n d"],
    grid: tuple[int, int],
    wanted: tuple[int, int],
    *,
    antialias: bool = False,
) -> Float[Array, "m d"]:
    """Learned positions of a grid of patches, interpolated to another grid by cubic convolution, as
    PyTorch's ``bicubic``.

    Paper: Keys 1981, https://doi.org/10.1109/TASSP.1981.1163711.
    """
    if grid == wanted:
        return table
    rows, columns = (cubic_weights(*sizes, antialias) for sizes in zip(grid, wanted))
    square = table.astype(jnp.float32).reshape(*grid, -1)
    resized = jnp.einsum(
        "ir,jc,rcd->ijd", rows, columns, square, precision=jax.lax.Precision.HIGHEST
    )
    return resized.reshape(wanted[0] * wanted[1], -1)


def cubic_weights(old: int, new: int, antialias: bool = False) -> Float[np.ndarray, "new old"]:
    """Share of each of ``old`` samples in ``new`` ones; pixel centres are aligned.

    Without antialiasing ``a = -0.75``, and samples beyond the border are those at the border. With
    it ``a = -0.5``, the curve widens where samples become fewer, and shares beyond the border are
    spread over the others.

    >>> cubic_weights(3, 3).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    weights = np.zeros((new, old))
    a, stretch = (-0.5, max(1.0, old / new)) if antialias else (-0.75, 1.0)
    for row in range(new):
        centre = (row + 0.5) * old / new - 0.5
        reach = 2 * stretch
        for sample in range(int(np.floor(centre - reach)), int(np.ceil(centre + reach)) + 1):
            share = _cubic(abs(centre - sample) / stretch, a)
            if 0 <= sample < old:
                weights[row, sample] += share
            elif not antialias:
                weights[row, min(max(sample, 0), old - 1)] += share
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _cubic(x: float, a: float) -> float:
    """Cubic convolution's weight at distance ``x`` (Keys 1981, equations 4 to 8)."""
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0
