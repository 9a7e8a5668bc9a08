"""Bytes in words."""

from __future__ import annotations

UNITS = ("kB", "MB", "GB", "TB", "PB")


def amount(count: int) -> str:
    """A number of bytes for people, in decimal units as quotas have them: "0 bytes", "1.5 MB"."""
    if count < 1000:
        return f"{count} byte{'' if count == 1 else 's'}"
    value = float(count)
    for unit in UNITS:
        value /= 1000
        if value < 999.95 or unit == UNITS[-1]:
            break
    return f"{value:.1f} {unit}"
