from collections.abc import Mapping, Sequence

def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str = "/",
    stdio: tuple[int, int, int] = (-1, -1, -1),
    setns: Sequence[int] = (),
) -> int:
    """Start a program by vfork and exec, in a session and process group of its own.

    Args:
        stdio: descriptors for 0, 1 and 2; -1 is /dev/null. Every other one must be CLOEXEC.
        setns: namespaces to enter before exec, in order.

    Returns:
        Its pid, a child of this process.

    Raises:
        OSError: of the step that failed; the program's name is in ``filename``.
    """
