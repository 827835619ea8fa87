"""Files without a name in memory, by which large bodies go from process to process.

Their bytes are written and read without the interpreter's lock, are mapped rather than copied, and
go with the last process that holds them, however that one ends.

>>> file = MemoryFile.of([b"ab", b"c"])
>>> file.size, bytes(file.view())
(3, b'abc')
>>> file.close()
"""

import mmap
import os
import tempfile
from collections.abc import Iterable
from typing import Any


class MemoryFile:
    """Anonymous file in memory, shared between processes by its descriptor.

    Args:
        descriptor: of the file, which this owns from now on; default a new file.
        size: bytes in it.
    """

    def __init__(self, descriptor: int | None = None, size: int = 0):
        self._descriptor = _created() if descriptor is None else descriptor
        self.size = size

    @classmethod
    def of(cls, parts: Iterable[Any]) -> "MemoryFile":
        """Make a file of these buffers, one after the other."""
        made = cls()
        for part in parts:
            made.write(part)
        return made

    def write(self, data: Any) -> None:
        """Append bytes."""
        view = memoryview(data).cast("B")
        self.size += len(view)
        while len(view):
            view = view[os.write(self._descriptor, view) :]

    def view(self) -> memoryview:
        """The bytes, mapped; they stay while the view is there, also when the file is closed."""
        if not self.size:
            return memoryview(b"")
        return memoryview(mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_READ))

    @property
    def descriptor(self) -> int:
        """File descriptor, to be passed to another process."""
        return self._descriptor

    def close(self) -> None:
        """Close the file; its bytes are freed if nobody else holds them."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()


def _created() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("ziggurat")
    with tempfile.TemporaryFile() as file:  # other systems: on disk, and unnamed as well
        return os.dup(file.fileno())
