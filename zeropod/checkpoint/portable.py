"""Checkpoints that are containerd's: written for somebody else, or given to start from.

What a container sleeps from is made for one use on this node, with connections closed; these are
what containerd's Checkpoint and Create speak of, by the runtime's own verbs and the caller's
options. Our own options to CRIU are put aside for them.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from zeropod.checkpoint import criu
from zeropod.errors import DeadlineExceeded, InvalidArgument, RuntimeFailed
from zeropod.oci.runtime import Runtime

Stdio = tuple[int, int, int]

_WORK: Final = "criu-work"
_EXPORT_S: Final = 3600.0  # to wherever the caller wants it; he may give up earlier
_DEADLINE_S: Final = 60.0
_BYTES_PER_S: Final = 16 << 20  # from somewhere that this node has never read


async def export(
    runtime: Runtime, id: str, bundle: Path, path: Path, flags: Sequence[str], work_path: str = ""
) -> None:
    """Have the runtime dump the awake container ``id`` into ``path``.

    ``flags`` are the runtime's. ``work_path``: where CRIU's log stays; without it, it goes.

    Raises:
        RuntimeFailed: with CRIU's first error.
        DeadlineExceeded: it took more than an hour.
    """
    criu_config = criu.node_config(established="--tcp-established" in flags)
    criu.config_file(bundle).write_text(criu_config)
    with _work(bundle, work_path) as work, _explained(work / "dump.log"):
        await runtime.checkpoint(
            id, bundle, image_path=path, work_path=work, extra=flags, timeout_s=_EXPORT_S
        )


async def restore(
    runtime: Runtime,
    id: str,
    bundle: Path,
    path: Path,
    *,
    stdio: Stdio,
    console: str = "",
    parent: str = "",
    work_path: str = "",
) -> int:
    """Have the runtime make container ``id`` from the checkpoint in ``path``. Returns init's pid.

    ``parent``: the checkpoint that this one builds upon, where there is one. What a failed attempt
    has made is gone when this raises.

    Raises:
        InvalidArgument: no checkpoint is there.
        RuntimeFailed: with CRIU's first error.
        DeadlineExceeded: it did not end in time.
    """
    try:
        size = sum(file.stat().st_size for file in path.iterdir())
    except OSError as error:
        raise InvalidArgument(f"start {id}: checkpoint {path}: {error.strerror}") from error
    criu.config_file(bundle).write_text(criu.node_config(established=False))
    with _work(bundle, work_path) as work, _explained(work / "restore.log"):
        try:
            return await runtime.restore(
                id,
                bundle,
                image_path=path,
                work_path=work,
                pid_file=bundle / "init.pid",
                stdio=stdio,
                console=console,
                extra=["--parent-path", parent] if parent else [],
                timeout_s=_DEADLINE_S + size / _BYTES_PER_S,
            )
        except BaseException:
            with contextlib.suppress(RuntimeFailed, DeadlineExceeded):
                await runtime.delete(id, bundle, force=True)
            raise


@contextlib.contextmanager
def _work(bundle: Path, work_path: str) -> Iterator[Path]:
    work = Path(work_path) if work_path else bundle / _WORK
    try:
        yield work
    finally:
        if not work_path:
            shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _explained(log: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeFailed as error:
        said = criu.reason(log)
        raise RuntimeFailed(f"{error}: {said}" if said else str(error)) from error
