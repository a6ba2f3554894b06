"""Version and build id of what is installed; an unbuilt source tree says so."""

from __future__ import annotations

try:
    from zeropod._build_info import BUILD_ID, VERSION
except ModuleNotFoundError:
    VERSION, BUILD_ID = "0+unbuilt", "unbuilt"

__all__ = ["BUILD_ID", "VERSION"]
