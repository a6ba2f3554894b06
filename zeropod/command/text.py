"""Figures and tables as text for a terminal."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final

NOTHING: Final = "-"
_GAP: Final = "  "
_SECOND: Final = 1_000_000_000
_MINUTE: Final = 60 * _SECOND
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR


def duration(ns: int) -> str:
    """``340ms``, ``2.8s``, ``57s``, ``12m``, ``5h``, ``3d``: what is worth telling of it."""
    if ns < _SECOND:
        return f"{max(ns, 0) // 1_000_000}ms"
    if ns < 10 * _SECOND:
        return f"{ns / _SECOND:.1f}s"
    for unit, name, limit in ((_SECOND, "s", 100), (_MINUTE, "m", 100), (_HOUR, "h", 48)):
        if ns < limit * unit:
            return f"{ns // unit}{name}"
    return f"{ns // _DAY}d"


def milliseconds(ns: int) -> str:
    """``62.1 ms``, ``1,204 ms``; what has not happened is nothing."""
    if not ns:
        return NOTHING
    return f"{ns / 1e6:.1f} ms" if ns < 100_000_000 else f"{ns / 1e6:,.0f} ms"


def size(count: int) -> str:
    """Bytes as ``0 B``, ``512 KiB``, ``9.4 MiB``, ``1.2 GiB``."""
    if count < 1 << 10:
        return f"{count} B"
    if count < 1 << 20:
        return f"{count / (1 << 10):.0f} KiB"
    return f"{count / (1 << 20):.1f} MiB" if count < 1 << 30 else f"{count / (1 << 30):.1f} GiB"


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Container[str] = (),
    width: int = 0,
) -> list[str]:
    """Columns as wide as they must be, those of ``right`` flush right; lines cut at ``width``."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.rjust(wide) if name in right else cell.ljust(wide)
            for name, cell, wide in zip(header, cells, widths, strict=True)
        )
        return cut(_GAP.join(padded).rstrip(), width)

    return [line(header), *map(line, rows)]


def cut(text: str, width: int) -> str:
    """At most ``width`` characters of it, if that is not 0."""
    return text if not width or len(text) <= width else f"{text[: width - 1]}…"


def printable(line: str) -> str:
    """Without what a terminal would act on: some of it was chosen inside a container."""
    return "".join(char if char.isprintable() else "?" for char in line)
