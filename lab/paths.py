"""Where the lab keeps its things: every path of it is named here, once."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
"""The source tree that the lab belongs to."""

ROOT = Path(os.environ.get("ZEROPOD_LAB", CHECKOUT / ".lab")).resolve()
"""Everything that the lab makes; ignored by git."""

DOWNLOADS = ROOT / "downloads"
TOOLS = ROOT / "tools"
"""CRIU, runc, containerd, CNI, unpacked from Debian: ``bin``, ``cni``, ``lib``, versions.json."""

PYTHON = ROOT / "python"
"""The node's interpreter, unpacked from Debian: a tree that begins with ``usr``."""

IMAGES = ROOT / "images"
"""OCI archives, ``<name>.tar``."""

VENV = ROOT / "venv"
"""The virtual environment that holds the wheel under test and nothing of the source tree."""

STATE = ROOT / "state"
"""What the running node writes to disk: containerd's root, /var/lib/zeropod, /var/log/pods."""

NODE = ROOT / "node"
"""The running node: its pid files, namespaces' record, containerd's log and configuration."""

LOCK = ROOT / "lock"
SOURCES = Path(__file__).resolve().parent
"""The lab's own source folder, with the sources of the images."""
