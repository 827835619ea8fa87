"""Part of building the package: compile the CPU kernels, if a C++ compiler is here.

An editable install gets the library for this machine's CPU, beside the sources. A wheel, which may
travel, gets one for every level of this kind of machine, and the right one is picked where it runs.
Without a compiler, or if compiling fails, the package is built all the same; it then uses XLA's own
code.
"""

import platform
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PLACE = "ziggurat/kernels/cpu/library"


class CpuKernels(BuildHookInterface):
    """Compiles ``src/ziggurat/kernels/cpu/source``."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before files are gathered; ``version`` is ``standard`` or ``editable``."""
        sys.path.insert(0, str(Path(self.root) / "src"))
        try:
            from ziggurat.core.errors import ZigguratError
            from ziggurat.kernels.cpu import build
        finally:
            sys.path.pop(0)
        fitting = build.levels()[:1]
        if version == "standard":
            fitting = tuple(x for x in build.LEVELS if x.machine == platform.machine())
        built = []
        try:
            for level in fitting:
                built.append(build.LIBRARY / build.file_name(level))
                if not built[-1].is_file():
                    self.app.display_waiting(f"compiling CPU kernels for {level.name}")
                    build.build(level)
        except ZigguratError as error:
            self.app.display_warning(str(error))
            return
        build.remove_stale()
        if version == "standard" and built:
            build_data["force_include"].update({str(x): f"{PLACE}/{x.name}" for x in built})
            build_data["pure_python"] = False
            system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{system}"
