"""A checkpoint for somebody else, by the runtime's own verb and the caller's options.

What a container sleeps from is made for one use on this node, with connections closed; this is what
containerd's Checkpoint asks for. Our own options to CRIU are put aside for it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from zeropod.checkpoint import criu
from zeropod.errors import RuntimeFailed
from zeropod.oci.runtime import Runtime

_WORK = "criu-work"


async def export(
    runtime: Runtime, id: str, bundle: Path, path: Path, flags: Sequence[str], work_path: str = ""
) -> None:
    """Have the runtime dump the awake container ``id`` into ``path``.

    ``flags`` are the runtime's. ``work_path``: where CRIU's log stays; without it, it goes.

    Raises:
        RuntimeFailed: with CRIU's first error.
    """
    work = Path(work_path) if work_path else bundle / _WORK
    established = "--tcp-established" in flags
    criu.config_file(bundle).write_text(criu.node_config(established=established))
    try:
        await runtime.checkpoint(id, bundle, image_path=path, work_path=work, extra=flags)
    except RuntimeFailed as error:
        said = criu.reason(work / "dump.log")
        raise RuntimeFailed(f"{error}: {said}" if said else str(error)) from error
    finally:
        if not work_path:
            shutil.rmtree(work, ignore_errors=True)
