"""Figures as people read them."""

import math


def short(value: float | int) -> str:
    """Format a number with three digits and k, M, G or T.

    >>> short(41234.0), short(999.6), short(7), short(0.25)
    ('41.2k', '1k', '7', '0.25')
    """
    if not math.isfinite(value):
        return str(value)
    size, unit = abs(value), 0
    while unit < 4 and float(f"{size:.3g}") >= 1000:
        size, unit = size / 1000, unit + 1
    digits = f"{size:.3g}"
    text = digits if "e" not in digits or size < 1 else f"{size:.0f}"
    return ("-" if value < 0 else "") + text + ("", "k", "M", "G", "T")[unit]


def duration(seconds: float | int) -> str:
    """Format seconds as h:mm:ss, with days in front when there are any.

    >>> duration(3725), duration(200000)
    ('1:02:05', '2 d 7:33:20')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days} d " if days else "") + f"{hour}:{minute:02}:{second:02}"


def size(size_bytes: float | int) -> str:
    """Format bytes with a binary unit.

    >>> size(512), size(1.5 * 2**30)
    ('512 B', '1.5 GiB')
    """
    value, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.4g} {units[0]}" if value < 1000 else f"{value:.0f} {units[0]}"
