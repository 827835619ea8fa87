"""Files of other programs: safetensors, GGUF, PyTorch and Orbax, read and written as named arrays.

Nothing here knows models, meshes or runs, needs PyTorch or executes a pickle.
"""

from typing import TYPE_CHECKING

from ziggurat.core import lazy

if TYPE_CHECKING:
    from ziggurat.formats.gguf_file import GgufFile, GgufTokenizer
    from ziggurat.formats.safetensors_files import SafetensorsDirectory, write_sharded

_HOMES = {
    "GgufFile": "gguf_file",
    "GgufTokenizer": "gguf_file",
    "SafetensorsDirectory": "safetensors_files",
    "write_sharded": "safetensors_files",
}

__all__ = ["GgufFile", "GgufTokenizer", "SafetensorsDirectory", "write_sharded"]

__getattr__, __dir__ = lazy.names(__name__, _HOMES)
