"""The command line of runc and of what is compatible with it.

The runtime writes its messages to a log of its own (``--log``, JSON lines), because its stdout and
stderr are the container's; an error is the last message of that log.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from zeropod.errors import NotFound, RuntimeFailed
from zeropod.oci.reaper import Completed, Reaper

Stdio = tuple[int, int, int]

DEFAULT_ROOT: Final = "/run/containerd/runc"
NOTE: Final = "runtime.json"
_GONE: Final = ("does not exist", "process already finished", "no such process", "not running")

QUICK_S: Final = 60.0
SLOW_S: Final = 300.0
"""How long a verb may take; what dumps or restores is given its own time."""


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """What containerd's configuration says of the runtime. Empty strings: the default."""

    binary_name: str = "runc"
    root: str = ""
    systemd_cgroup: bool = False
    no_pivot_root: bool = False
    no_new_keyring: bool = False
    shim_cgroup: str = ""
    io_uid: int = 0
    io_gid: int = 0
    criu_image_path: str = ""
    criu_work_path: str = ""

    @property
    def io_owner(self) -> tuple[int, int]:
        """(uid, gid) of the pipes of a process: a user namespace's root may open them anew."""
        return self.io_uid, self.io_gid

    def note(self, bundle: Path) -> None:
        """Write them into the bundle, for a `delete` that has to do without the shim."""
        (bundle / NOTE).write_text(json.dumps(asdict(self)))

    @classmethod
    def noted(cls, bundle: Path) -> RuntimeOptions:
        """What `note` wrote; the defaults where it did not get that far."""
        try:
            return cls(**json.loads((bundle / NOTE).read_text()))
        except (OSError, ValueError, TypeError):
            return cls()


class Runtime:
    """Verbs of the runtime for the containers of one containerd namespace.

    Every verb raises `errors.RuntimeFailed` with "runc <verb> <id>: <the runtime's message>".
    """

    def __init__(self, reaper: Reaper, options: RuntimeOptions, namespace: str) -> None:
        self.options = options
        self.root = str(Path(options.root or DEFAULT_ROOT) / namespace)
        self._reaper = reaper
        self.binary = shutil.which(options.binary_name or "runc") or options.binary_name or "runc"

    def argv(self, verb: str, log: str, *rest: str) -> list[str]:
        """A whole command line. ``log``: where the runtime's messages go."""
        argv = [self.binary, "--root", self.root, "--log", log, "--log-format", "json"]
        if self.options.systemd_cgroup:
            argv.append("--systemd-cgroup")
        return [*argv, verb, *rest]

    async def create(
        self, id: str, bundle: Path, *, pid_file: Path, stdio: Stdio, console: str = ""
    ) -> int:
        """Create the container. Returns the pid of init, our child now, and watched.

        ``console``: the socket that takes its terminal, where it has one.
        """
        extra = ["--no-pivot"] if self.options.no_pivot_root else []
        extra += ["--no-new-keyring"] if self.options.no_new_keyring else []
        extra += ["--console-socket", console] if console else []
        where = ["--bundle", str(bundle), "--pid-file", str(pid_file)]
        with self._reaper.command():
            await self._run("create", id, bundle, [*where, *extra, id], stdio, timeout_s=SLOW_S)
            return self._made(f"create {id}", pid_file)

    async def start(self, id: str, bundle: Path) -> None:
        await self._run("start", id, bundle, [id])

    async def exec(
        self,
        id: str,
        bundle: Path,
        process: Path,
        *,
        pid_file: Path,
        stdio: Stdio,
        console: str = "",
    ) -> int:
        """Run another process in the container. Returns its pid; it is our child, and watched."""
        rest = ["--detach", "--process", str(process), "--pid-file", str(pid_file)]
        rest += ["--console-socket", console, id] if console else [id]
        with self._reaper.command():
            await self._run("exec", id, bundle, rest, stdio)
            return self._made(f"exec {id}", pid_file)

    async def kill(self, id: str, bundle: Path, signal: int, *, all: bool = False) -> None:
        """Signal init, or every process. Raises NotFound when there is nothing left to signal."""
        rest = ["--all", id, str(signal)] if all else [id, str(signal)]
        try:
            await self._run("kill", id, bundle, rest)
        except RuntimeFailed as error:
            if any(word in str(error) for word in _GONE):
                raise NotFound(str(error)) from error
            raise

    async def delete(self, id: str, bundle: Path, *, force: bool = False) -> None:
        """Remove the container's state and cgroup. One that is gone already is no error."""
        try:
            await self._run("delete", id, bundle, ["--force", id] if force else [id])
        except RuntimeFailed as error:
            if "does not exist" not in str(error):
                raise

    async def state(self, id: str, bundle: Path) -> dict[str, Any]:
        """The OCI state. Raises NotFound for a container the runtime does not know."""
        try:
            done = await self._run("state", id, bundle, [id])
        except RuntimeFailed as error:
            if "does not exist" in str(error):
                raise NotFound(str(error)) from error
            raise
        found = json.loads(done.output)
        assert isinstance(found, dict)
        return found

    async def pause(self, id: str, bundle: Path) -> None:
        """Freeze every process of the container."""
        await self._run("pause", id, bundle, [id])

    async def resume(self, id: str, bundle: Path) -> None:
        """Let them go on."""
        await self._run("resume", id, bundle, [id])

    async def update(self, id: str, bundle: Path, resources: Path) -> None:
        """Set limits from a file of OCI LinuxResources."""
        await self._run("update", id, bundle, ["--resources", str(resources), id])

    async def checkpoint(
        self,
        id: str,
        bundle: Path,
        *,
        image_path: Path,
        work_path: Path,
        setns: Sequence[int] = (),
        extra: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        timeout_s: float,
    ) -> None:
        """Dump the container; its processes end and the runtime forgets it."""
        rest = ["--image-path", str(image_path), "--work-path", str(work_path), *extra, id]
        await self._run("checkpoint", id, bundle, rest, setns=setns, env=env, timeout_s=timeout_s)

    async def restore(
        self,
        id: str,
        bundle: Path,
        *,
        image_path: Path,
        work_path: Path,
        pid_file: Path,
        stdio: Stdio,
        console: str = "",
        extra: Sequence[str] = (),
        timeout_s: float,
    ) -> int:
        """Make the container from a checkpoint. Returns the pid of init, our child, and watched."""
        rest = ["--detach", "--no-subreaper", "--bundle", str(bundle), "--pid-file", str(pid_file)]
        rest += ["--image-path", str(image_path), "--work-path", str(work_path), *extra]
        rest += ["--no-pivot"] if self.options.no_pivot_root else []
        rest += ["--console-socket", console] if console else []
        with self._reaper.command():
            await self._run("restore", id, bundle, [*rest, id], stdio, timeout_s=timeout_s)
            return self._made(f"restore {id}", pid_file)

    def restore_argv(
        self,
        id: str,
        bundle: Path,
        *,
        image_path: Path,
        work_path: Path,
        pid_file: Path,
        extra: Sequence[str] = (),
    ) -> list[str]:
        """The command that restores a container, to be run at once or much later."""
        rest = ["--detach", "--bundle", str(bundle), "--pid-file", str(pid_file)]
        rest += ["--image-path", str(image_path), "--work-path", str(work_path), *extra, id]
        if self.options.no_pivot_root:
            rest.insert(0, "--no-pivot")
        return self.argv("restore", str(self.log_file(bundle)), *rest)

    def log_file(self, bundle: Path) -> Path:
        return bundle / "log.json"

    def last_error(self, bundle: Path) -> str:
        """The last error that the runtime wrote, "" where there is none."""
        try:
            lines = self.log_file(bundle).read_text(errors="replace").splitlines()
        except OSError:
            return ""
        for line in reversed(lines[-50:]):
            with contextlib.suppress(ValueError, AttributeError):
                entry = json.loads(line)
                if entry.get("level") in ("error", "fatal", "panic"):
                    return str(entry.get("msg", "")).strip()
        return ""

    async def _run(
        self,
        verb: str,
        id: str,
        bundle: Path,
        rest: list[str],
        stdio: Stdio | None = None,
        *,
        setns: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Completed:
        log = self.log_file(bundle)
        with contextlib.suppress(FileNotFoundError):
            os.truncate(log, 0)
        argv = self.argv(verb, str(log), *rest)
        name = f"{Path(self.binary).name} {verb} {id}"
        try:
            done = await self._reaper.run(
                argv,
                cwd=str(bundle),
                stdio=stdio,
                setns=setns,
                env=env,
                timeout_s=QUICK_S if timeout_s is None else timeout_s,
            )
        except FileNotFoundError as error:
            text = f"{name}: {self.binary} is not installed or not in PATH"
            raise RuntimeFailed(text) from error
        except OSError as error:
            raise RuntimeFailed(f"{name}: cannot start {self.binary}: {error.strerror}") from error
        if done.status:
            said = self.last_error(bundle) or done.output.decode(errors="replace").strip()
            raise RuntimeFailed(f"{name}: {said or f'ended with status {done.status}'}")
        return done

    def _made(self, what: str, pid_file: Path) -> int:
        """The pid of what a command has made, watched before it can be swept."""
        try:
            pid = int(pid_file.read_text())
            self._reaper.watch(pid)
        except (OSError, ValueError) as error:
            raise RuntimeFailed(f"{Path(self.binary).name} {what}: no pid: {error}") from error
        return pid
