"""Types of what JSON and TOML hold, for values that are read and not yet checked.

>>> found: JsonObject = {"step": 3, "loss": [1.5, None]}
"""

from collections.abc import Mapping
from typing import Any

Json = Any
"""``None``, a bool, a number, a text, a list of these, or an object. (Written out, the type would
refuse a ``dict[str, int]``, since a dict of another type of value is no subtype.)"""
JsonObject = dict[str, Json]
"""A JSON object or a TOML table."""
JsonMapping = Mapping[str, Json]
"""A JSON object or TOML table that is read and not changed."""
