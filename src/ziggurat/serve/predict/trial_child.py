"""The child process of :mod:`.trial`: load one bundle on the CPU and end."""

import json
import os
import sys
from pathlib import Path

from ziggurat.core.errors import ZigguratError
from ziggurat.serve.predict.bundle import LoadedBundle
from ziggurat.serve.predict.trial import REFUSED


def main(asked: str) -> int:
    """Load a bundle in this child process; returns the exit code."""
    path, batch_sizes, allowed = json.loads(asked)
    try:
        LoadedBundle.load(Path(path), batch_sizes=batch_sizes, custom_calls=allowed)
    except ZigguratError as error:
        print(error, file=sys.stderr)
        return REFUSED
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stderr.flush()
    os._exit(code)  # nothing to tidy up; an interpreter's end might crash in what the bundle did
