"""Every example runs from start to end and says what it should."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
SAID = {
    # A broken model or server would be right one time in ten.
    "bundle_classifier.py": r"served: (9\d|100)% of new pictures are right",
    # One that does not look would be right one time in six.
    "name_colours.py": r"(9\d|100)% of 60 new squares are named rightly",
    "chain_data.py": r"pairs.jsonl: 2000 records",
}


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example(path, tmp_path):
    command = [sys.executable, str(path)]
    # users run them under JAX's own promotion
    env = os.environ | {"JAX_NUMPY_RANK_PROMOTION": "allow"}
    env |= {"JAX_NUMPY_DTYPE_PROMOTION": "standard"}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.search(SAID[path.name], done.stdout), done.stdout
