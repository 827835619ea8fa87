"""Private names of Orbax are where Ziggurat expects them."""

import pytest

from ziggurat.checkpoint import orbax_private


@pytest.mark.parametrize("name", orbax_private.NAMES, ids=lambda name: name.name)
def test_orbax_still_has(name):
    name.check()  # fails with a sentence that says what to do


@pytest.mark.parametrize("attribute", orbax_private.HANDLER_ATTRIBUTES)
def test_its_array_handler_still_has(attribute):
    assert hasattr(orbax_private.host_array_handler(), attribute), (
        f"Orbax' ArrayHandler objects have no {attribute}; see where ArrayHandler.serialize reads "
        "its store of metadata and whether replicas write in parallel, and mend "
        "src/ziggurat/checkpoint/orbax_private.py"
    )
