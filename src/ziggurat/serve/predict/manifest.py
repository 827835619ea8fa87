"""A bundle's table of contents: ``manifest.json``, and the check of every byte against it.

The manifest holds size and SHA-256 digest of every other file (``sha256sum`` prints the
same), and a digest of itself: that of its own text with the field ``digest`` empty. It is written
in one canonical form and refused in any other, so that no byte of a bundle can change unseen.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ziggurat.core import atomic, config
from ziggurat.core.errors import ServeError
from ziggurat.core.json_types import JsonMapping
from ziggurat.serve.predict.signature import BATCH, Signature

FORMAT = "ziggurat-bundle"
VERSION = 2
READ = (1, 2)
"""Versions that are read. In version 1 nothing says along which dimensions padding and joining were
found harmless, so such a bundle is served with neither."""
FILE = "manifest.json"
PROGRAM = "program"
WEIGHTS = "weights"
GOLDEN = "golden"
_BLOCK = 1 << 22
_DAMAGED = "copy the bundle again"


class BundleError(ServeError):
    """Error: a bundle is missing, damaged, or of a form that this version does not read."""


@config.node
class FileEntry:
    """A file of the bundle, with size and digest."""

    bytes: int
    sha256: str
    """SHA-256, 64 hex digits."""


@config.node
class WeightEntry:
    """One array of the program's weights: its name in the safetensors files, type and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@config.node
class Golden:
    """Recorded inputs and outputs, with the tolerance of a replay.

    Floating-point outputs may differ by ``rtol`` times the largest finite magnitude of the recorded
    output plus ``atol``; on another platform than the one that recorded them by ``elsewhere``
    times. Other types must be equal.
    """

    cases: int
    platform: str
    rtol: float
    atol: float
    elsewhere: float
    """Factor on both, since a TPU multiplies float32 in bfloat16 passes by default."""


@config.node
class BundleManifest:
    """The content of ``manifest.json`` but for its own digest."""

    signature: Signature
    sizes: dict[str, tuple[int, ...]]
    """For a symbol other than the batch: sizes to which inputs are padded with zeros, ascending."""
    platforms: tuple[str, ...]
    x64: bool
    """Whether the program was traced with 64-bit types and runs with them."""
    weights: tuple[WeightEntry, ...]
    golden: Golden
    labels: dict[str, str]
    tools: dict[str, str]
    """Versions of what wrote it; for people, nothing depends on them."""
    files: dict[str, FileEntry]
    exact: dict[str, str] = dataclasses.field(default_factory=dict)
    """Dimensions along which inputs are never padded nor joined, since that would change results,
    each with the reason. With the batch among them one request is served at a time."""
    format: str = FORMAT
    version: int = VERSION

    def __post_init__(self):
        config.require(self.format == FORMAT, "format", self.format, FORMAT)
        config.require(self.version in READ, "version", self.version, str(VERSION))
        own = set(self.signature.symbols)
        for name, sizes in self.sizes.items():
            config.require(name in own, f"sizes.{name}", name, "a symbol of the signature")
            rising = (
                bool(sizes) and sizes[0] > 0 and all(a < b for a, b in itertools.pairwise(sizes))
            )
            config.require(rising, f"sizes.{name}", list(sizes), "rising sizes of one or more")
        for name in self.exact:
            config.require(name in own, f"exact.{name}", name, "a symbol of the signature")
        config.require(self.golden.cases >= 1, "golden.cases", self.golden.cases, "1 or more")
        config.require(PROGRAM in self.files, "files", sorted(self.files), f"{PROGRAM} among them")

    @property
    def served_exactly(self) -> Mapping[str, str]:
        """:attr:`exact`, and for a bundle of version 1 every dimension."""
        if self.version > 1:
            return self.exact
        return dict.fromkeys(
            self.signature.symbols, "a bundle of version 1, which proves less: export it again"
        )

    @property
    def joins_rows(self) -> bool:
        """Whether requests of several clients are joined along the batch."""
        return self.signature.batched and BATCH not in self.served_exactly


def render(manifest: BundleManifest) -> tuple[bytes, str]:
    """Text of the manifest with its digest in it, and the digest.

    The digest names the bundle: equal digests mean equal bytes in every file.
    """
    return _seal(config.to_plain(manifest))


def write(directory: Path, manifest: BundleManifest) -> str:
    """Write ``manifest.json``; returns the bundle's digest."""
    text, digest = render(manifest)
    atomic.write_file(directory / FILE, text)
    return digest


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hex digits."""
    digest, buffer = hashlib.sha256(), bytearray(_BLOCK)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def entries(directory: Path) -> dict[str, FileEntry]:
    """Size and digest of every file below a directory but the manifest, several at a time."""
    names = sorted(_files(directory) - {FILE})
    return {
        name: FileEntry(bytes=(directory / name).stat().st_size, sha256=digest)
        for name, digest in zip(names, _digests(directory / name for name in names), strict=True)
    }


def read(directory: Path) -> tuple[BundleManifest, str]:
    """The manifest, checked against its own digest, and that digest.

    Raises:
        BundleError: there is none, a byte of it differs, or it is of another version.
    """
    path = Path(directory) / FILE
    try:
        text = path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"bundle {directory}",
            found=f"{FILE}: {error.strerror}",
            expected="a bundle",
            fix="ziggurat bundle export writes one",
        ) from None
    try:
        tree = json.loads(text)
        told = tree.pop("digest")
        intact = _seal(tree) == (text, told)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact, tree, told = False, {}, ""
    if not intact:
        raise BundleError(
            f"bundle {directory}: {FILE}",
            found="content that its own digest does not cover",
            expected="the file as it was written",
            fix=_DAMAGED,
        )
    for key, known in (("format", (FORMAT,)), ("version", READ)):
        if tree.get(key) not in known:
            raise BundleError(
                f"bundle {directory}: {key}",
                found=repr(tree.get(key)),
                expected=" or ".join(map(repr, known)),
                fix="use the Ziggurat that wrote it",
            )
    return config.from_plain(BundleManifest, tree, f"bundle {directory}: {FILE}"), told


def verify(directory: Path) -> tuple[BundleManifest, str]:
    """Read the manifest and compare every file of the bundle with it.

    Returns:
        The manifest and the bundle's digest.

    Raises:
        BundleError: a file is missing, not listed, or differs; the text names it.
    """
    directory = Path(directory)
    manifest, digest = read(directory)
    found, listed = _files(directory), {FILE, *manifest.files}
    for name in sorted(listed ^ found):
        missing = name in listed
        raise BundleError(
            f"bundle {directory}: {name}",
            found="no such file" if missing else "a file that the manifest does not list",
            expected=f"the files of {FILE}",
            fix=_DAMAGED,
        )
    for name, entry in manifest.files.items():
        size = (directory / name).stat().st_size
        if size != entry.bytes:
            raise BundleError(
                f"bundle {directory}: {name}",
                found=f"{size} bytes",
                expected=f"{entry.bytes}",
                fix=_DAMAGED,
            )
    digests = _digests(directory / name for name in manifest.files)
    for (name, entry), actual in zip(manifest.files.items(), digests, strict=True):
        if actual != entry.sha256:
            raise BundleError(
                f"bundle {directory}: {name}",
                found=f"SHA-256 {actual[:16]}...",
                expected=f"{entry.sha256[:16]}...",
                fix=_DAMAGED,
            )
    return manifest, digest


def _seal(tree: JsonMapping) -> tuple[bytes, str]:
    def text(digest: str) -> bytes:
        body = {**tree, "digest": digest}
        return json.dumps(body, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"

    digest = hashlib.sha256(text("")).hexdigest()
    return text(digest), digest


def _files(directory: Path) -> set[str]:
    """Paths of everything below that is not a directory; links are not followed."""
    found = set()
    for root, folders, names in os.walk(directory):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in (*names, *links):
            path = Path(root, name)
            inner = path.relative_to(directory).as_posix()
            if path.is_symlink() or not path.is_file():
                raise BundleError(
                    f"bundle {directory}: {inner}",
                    found="not a plain file",
                    expected="plain files only",
                )
            found.add(inner)
    return found


def _digests(paths: Iterable[Path]) -> list[str]:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "digest") as pool:
        return list(pool.map(digest_file, paths))
