from collections.abc import Mapping, Sequence

def set_open_files(soft_limit: int) -> None:
    """RLIMIT_NOFILE's soft limit of every program started from now on; 0: that of this process.

    For a process that has raised its own, which is as process-wide as this is.
    """

class Command:
    """Arguments of a program to start; see `_spawn.spawn`."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        stdio: tuple[int, int, int],
        setns: Sequence[int],
    ) -> None: ...
