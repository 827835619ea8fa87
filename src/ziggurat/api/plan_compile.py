"""The process that compiles for ``ziggurat plan``; it is ended as soon as memory is known.

Arguments: run file, topology, slices, and the folder into which libtpu writes.
"""

import sys
from pathlib import Path


def main(args: list[str]) -> int:
    from ziggurat.core import config
    from ziggurat.plan import Topology
    from ziggurat.plan.program import OPTIONS
    from ziggurat.train.ahead_of_time import lower_step
    from ziggurat.train.config import RunConfig

    run_file, topology, slices, folder = args
    devices = Topology.parse(topology, int(slices)).devices()
    run = config.load(RunConfig, Path(run_file)).value
    options: dict[str, str | bool] = dict(zip(OPTIONS, (folder, True)))
    lower_step(run, devices).compile(compiler_options=options)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
