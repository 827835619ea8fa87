"""Runs ``ziggurat`` as a core installation would: modules of extras cannot be imported.

``python -m tests.cli.without_extras doctor --json``
"""

import importlib.abc
import sys

from ziggurat.core.extras import MODULES


class NotInstalled(importlib.abc.MetaPathFinder):
    """Finds no module that an extra brings, as if it were not installed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "google" or fullname.startswith("google.protobuf"):
            # other packages share the namespace and bring protobuf themselves
            return
        if fullname.partition(".")[0] in MODULES:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return


if __name__ == "__main__":
    sys.meta_path.insert(0, NotInstalled())
    from ziggurat.cli.main import main

    sys.exit(main())
