"""Make a virtual environment and install locked requirements into it, with nothing but Python.

Called by the Makefile::

    python3 scripts/install.py .venv requirements-dev.lock torch==2.13.0 --package

This file parses on Python 2.7 too, so that an old one is told its version and not a syntax error;
the work is in ``install_requirements.py``.
"""

import sys

LEAST_PYTHON = (3, 11)


def main(args):
    """Install each of ``args[1:]`` into the environment ``args[0]``; returns the exit code."""
    if sys.version_info < LEAST_PYTHON:
        found, least = sys.version.split()[0], ".".join(map(str, LEAST_PYTHON))
        advice = "install one and run make PYTHON=python3.x"
        line = "error: Python: found %s; expected %s or newer; %s\n" % (found, least, advice)  # noqa: UP031
        sys.stderr.write(line)
        return 1
    import install_requirements

    return install_requirements.main(args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
