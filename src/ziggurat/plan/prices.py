"""Prices of a chip for an hour: a table that the user keeps.

No prices ship: they differ by region, commitment and day, and a wrong one is worse than none. A
TOML file says what you pay, from where and when::

    currency = "USD"
    source = "our contract, 2026-11-01"
    [per_chip_hour]
    v5p = 2.5

It is named by ``--prices FILE`` or the variable ``ZIGGURAT_PRICES``.
"""

import os
from pathlib import Path

from ziggurat.core import config


@config.node
class PriceTable:
    """Prices of one cloud provider."""

    currency: str
    source: str
    """Where the prices are from, and of which day."""
    per_chip_hour: dict[str, float]
    """Generation -> price of one chip for an hour."""

    def __post_init__(self):
        for name, price in self.per_chip_hour.items():
            config.require(price > 0, f"per_chip_hour.{name}", price, "more than 0")


def load(path: Path | None = None) -> PriceTable | None:
    """Read a price table from a file, or from the one ``ZIGGURAT_PRICES`` names; ``None`` where
    neither is given.

    Raises:
        ConfigError: the file is missing or of another form.
    """
    chosen = path or os.environ.get("ZIGGURAT_PRICES")
    return config.load(PriceTable, Path(chosen)).value if chosen else None
