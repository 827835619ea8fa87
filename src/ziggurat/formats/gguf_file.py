"""GGUF files (llama.cpp): metadata, tensors as float32 or in their blocks, and the tokenizer's
pieces.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped, UInt8

from ziggurat.core.errors import CheckpointError, did_you_mean

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Token types of ``tokenizer.ggml.token_type``."""

_ROWS = 4096
"""Rows of matrices that are compared at once."""
_FLOATS = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file, known without reading it."""

    shape: tuple[int, ...]
    """Row-major, as numpy and Hugging Face have it (GGUF lists the innermost dimension first)."""
    quantization: str
    """Storage type by its GGML name, such as ``F32`` or ``Q4_1``."""


@dataclasses.dataclass(frozen=True)
class GgufTokenizer:
    """Tokenizer data of a GGUF file, from which ``tokenizers`` can build one.

    See :func:`ziggurat.formats.gguf_tokenizer.tokenizer_json`.
    """

    model: str
    """Kind: ``gpt2`` (byte-level BPE), ``llama`` (SentencePiece), ``bert``, ..."""
    pre_tokenizer: str
    """How text is split before BPE, by llama.cpp's name; ``default`` if the file says nothing."""
    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    """One of NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE for each token."""
    merges: tuple[tuple[str, str], ...]
    """BPE merges, first is best; empty for other kinds."""
    scores: tuple[float, ...]
    """SentencePiece scores; empty for other kinds."""
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    """End of a chat turn, where it differs from the end of text."""
    unknown_id: int | None
    padding_id: int | None
    add_bos: bool | None
    """Whether encoding starts with ``bos_id``; None if the file says nothing."""
    add_eos: bool | None
    chat_template: str | None
    """Jinja source."""
    separator_id: int | None = None
    """Behind each text, in encoders."""
    add_separator: bool | None = None
    """Whether encoding ends with ``separator_id``."""
    add_space_prefix: bool | None = None
    """SentencePiece: whether a text starts with a space of its own."""
    remove_extra_whitespaces: bool | None = None
    """Unigram: whether spaces at both ends go and those between words become one."""
    charsmap: bytes = b""
    """Unigram: precompiled rules of normalization."""
    lowercase: bool | None = None
    """WordPiece: whether text becomes lower case without accents; so it does if None."""


class GgufFile:
    """One GGUF file: metadata now, tensors when asked.

    Args:
        path: a ``.gguf`` file, or the first of several parts; they stay mapped into memory.

    Raises:
        CheckpointError: no such file, not GGUF, or cut short; a part is missing.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.metadata, self._tensors = _opened(self.path)
        for part in self._parts():
            self._tensors |= _opened(part)[1]
        expected = self.metadata.get("split.tensors.count", len(self._tensors))
        if len(self._tensors) != expected:
            raise CheckpointError(
                f"GGUF file {self.path}: split.tensors.count",
                found=f"{len(self._tensors)} tensors in all parts",
                expected=expected,
                fix="copy the parts again",
            )
        self.tensors: dict[str, GgufTensor] = {
            name: GgufTensor(tuple(int(n) for n in reversed(tensor.shape)), tensor.tensor_type.name)
            for name, tensor in self._tensors.items()
        }
        """All tensors by name."""

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def dtype_of(self, name: str) -> np.dtype:
        """Type in which a tensor's values are stored; float32 for what is dequantised."""
        kind = self.tensors[name].quantization
        return np.dtype(_FLOATS.get(kind, np.float32))

    def read(self, name: str) -> Shaped[np.ndarray, "..."]:
        """One tensor as float32 in row-major order; integer tensors keep their type.

        Raises:
            CheckpointError: no tensor of this name, or a storage type that cannot be dequantised.
        """
        tensor, info = self._known(name), self.tensors[name]
        if tensor.data.dtype.kind == "i":
            return np.array(tensor.data).reshape(info.shape)
        return self._floats(name, tensor.data).reshape(info.shape)

    def _floats(self, name: str, data: np.ndarray) -> np.ndarray:
        """Some rows of a tensor as float32."""
        from gguf import dequantize

        tensor, info = self._known(name), self.tensors[name]
        if info.quantization == "F64":
            return data.astype(np.float32)
        try:
            return np.array(dequantize(data, tensor.tensor_type), np.float32)
        except NotImplementedError:
            raise CheckpointError(
                f"GGUF file {self.path}: tensor {name}",
                found=f"storage type {info.quantization}",
                expected="a type the gguf package can dequantise",
                fix="use a file of another quantisation, such as Q8_0 or F16",
            ) from None

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors hold equal values. Of blocks of one type the bytes are compared, of
        others a few rows at a time."""
        first, second = self._known(one), self._known(other)
        if self.tensors[one].shape != self.tensors[other].shape:
            return False
        if first.tensor_type == second.tensor_type:
            return np.array_equal(first.data, second.data)
        for start in range(0, first.data.shape[0], _ROWS):
            rows = slice(start, start + _ROWS)
            some = self._floats(one, first.data[rows]), self._floats(other, second.data[rows])
            if not np.array_equal(*some):
                return False
        return True

    def blocks(self, name: str) -> UInt8[np.ndarray, "*rows blocks bytes"]:
        """The blocks of a quantised tensor as they are stored, by rows.

        Raises:
            CheckpointError: no tensor of this name.
        """
        from gguf import GGML_QUANT_SIZES

        tensor, info = self._known(name), self.tensors[name]
        values, size = GGML_QUANT_SIZES[tensor.tensor_type]
        return tensor.data.reshape(*info.shape[:-1], info.shape[-1] // values, size)

    def _known(self, name: str) -> Any:
        if name not in self._tensors:
            raise CheckpointError(
                f"GGUF file {self.path}: tensor {name}",
                found="no such tensor",
                expected=f"one of {len(self.tensors)} tensors",
                fix=did_you_mean(name, self.tensors),
            )
        return self._tensors[name]

    def tokenizer(self) -> GgufTokenizer:
        """The tokenizer's pieces.

        Raises:
            CheckpointError: the file has no tokenizer, or its lists do not fit together.
        """
        get = _Metadata(self.path, self.metadata)
        tokens = tuple(get.list("tokenizer.ggml.tokens"))
        types = tuple(get.list("tokenizer.ggml.token_type", [NORMAL] * len(tokens)))
        if len(types) != len(tokens):
            raise CheckpointError(
                f"GGUF file {self.path}: tokenizer.ggml.token_type",
                found=f"{len(types)} types",
                expected=f"{len(tokens)}, one for each token",
            )
        merges = []
        for merge in get.list("tokenizer.ggml.merges", []):
            left, space, right = merge.partition(" ")
            if not (left and space and right) or " " in right:
                raise CheckpointError(
                    f"GGUF file {self.path}: tokenizer.ggml.merges",
                    found=repr(merge),
                    expected="two pieces with a space between",
                )
            merges.append((left, right))
        return GgufTokenizer(
            model=get.value("tokenizer.ggml.model", str, required=True),
            pre_tokenizer=get.value("tokenizer.ggml.pre", str) or "default",
            tokens=tokens,
            token_types=types,
            merges=tuple(merges),
            scores=tuple(get.list("tokenizer.ggml.scores", [])),
            bos_id=get.token_id("bos", len(tokens)),
            eos_id=get.token_id("eos", len(tokens)),
            eot_id=get.token_id("eot", len(tokens)),
            unknown_id=get.token_id("unknown", len(tokens)),
            padding_id=get.token_id("padding", len(tokens)),
            add_bos=get.value("tokenizer.ggml.add_bos_token", bool),
            add_eos=get.value("tokenizer.ggml.add_eos_token", bool),
            chat_template=get.value("tokenizer.chat_template", str),
            separator_id=get.token_id("seperator", len(tokens)),  # codespell:ignore
            add_separator=get.value("tokenizer.ggml.add_sep_token", bool),
            add_space_prefix=get.value("tokenizer.ggml.add_space_prefix", bool),
            remove_extra_whitespaces=get.value("tokenizer.ggml.remove_extra_whitespaces", bool),
            charsmap=bytes(get.list("tokenizer.ggml.precompiled_charsmap", [])),
            lowercase=get.value("tokenizer.ggml.normalizer.lowercase", bool),
        )

    def _parts(self) -> list[Path]:
        """Files that hold the rest of a model in parts, of which the first was given."""
        count, number = (self.metadata.get(f"split.{key}", 0) for key in ("count", "no"))
        if count < 2:
            return []
        stem, found, _ = self.path.name.rpartition(f"-{number + 1:05d}-of-{count:05d}.gguf")
        names = [f"{stem}-{n:05d}-of-{count:05d}.gguf" for n in range(1, count + 1)]
        if not found or number:
            raise CheckpointError(
                f"GGUF file {self.path}",
                found=f"part {number + 1} of {count}",
                expected="the first part" if found else f"the name {names[0]}",
                fix=f"give {names[0]}" if found else "rename the parts as they were",
            )
        missing = [name for name in names if not self.path.with_name(name).is_file()]
        if missing:
            raise CheckpointError(
                f"GGUF file {self.path}",
                found=f"{count} parts, of which {missing[0]} is missing",
                expected="all parts in one directory",
                fix="download the missing ones",
            )
        return [self.path.with_name(name) for name in names[1:]]


def _opened(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and tensors of one file.

    Raises:
        CheckpointError: no such file, not GGUF, or cut short.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        metadata = {
            key: field.contents()
            for key, field in reader.fields.items()
            if not key.startswith("GGUF.")
        }
        size = path.stat().st_size
        for tensor in reader.tensors:
            if tensor.data_offset + tensor.n_bytes > size:
                raise ValueError(f"tensor {tensor.name} ends beyond the end of the file")
        return metadata, {tensor.name: tensor for tensor in reader.tensors}
    except FileNotFoundError:
        raise CheckpointError(
            f"GGUF file {path}", found="no such file", fix="check the path"
        ) from None
    except (ValueError, IndexError, KeyError, OSError, OverflowError, TypeError) as error:
        line = str(error).partition("\n")[0]
        raise CheckpointError(
            f"GGUF file {path}",
            found=f"a damaged file, or another kind ({line})",
            expected="a whole GGUF file, version 2 or 3",
            fix="copy the file again",
        ) from None


@dataclasses.dataclass(frozen=True)
class _Metadata:
    """Typed access to metadata with errors that name file and key."""

    path: Path
    entries: dict[str, Any]

    def value(self, key: str, kind: type, *, required: bool = False) -> Any:
        found = self.entries.get(key)
        if found is None and not required:
            return None
        if not isinstance(found, kind):
            shown = "no such key" if found is None else repr(found)
            raise CheckpointError(
                f"GGUF file {self.path}: {key}", found=shown, expected=kind.__name__
            )
        return found

    def list(self, key: str, default: list[Any] | None = None) -> list[Any]:
        if default is not None and key not in self.entries:
            return default
        return self.value(key, list, required=True)

    def token_id(self, role: str, size: int) -> int | None:
        key = f"tokenizer.ggml.{role}_token_id"
        found = self.value(key, int)
        if found is not None and not 0 <= found < size:
            raise CheckpointError(
                f"GGUF file {self.path}: {key}", found=found, expected=f"an id below {size}"
            )
        return found
