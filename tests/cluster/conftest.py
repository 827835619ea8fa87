"""One cluster for all tests: starting hosts is what takes the time."""

import pytest
from tests.cluster.runs import start_cluster

PAUSE_S = 0.1


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="session")
def printed():
    return []


@pytest.fixture(scope="session")
def cluster(folder, printed):
    """Two hosts and a spare, which is ready before one of the hosts is."""
    options = {"hosts": 2, "spares": 1, "silence_s": 6.0, "preload": ["tests.cluster.late"]}
    options["printed"] = lambda *pair: printed.append(pair)
    with start_cluster(folder / "cluster", PAUSE_S, **options) as cluster:
        yield cluster
