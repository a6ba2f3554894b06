from collections.abc import Mapping, Sequence

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
