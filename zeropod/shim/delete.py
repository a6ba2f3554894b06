"""`delete`: what is left of a container whose shim is dead is taken away.

Works alone, with nothing but the bundle: the runtime's own removal first, then what it cannot know
of. Helpers of the dead shim (a runtime in the middle of something) carry its mark in their
environment; a CRIU, whose title overwrites that, has images of the container open; processes of the
container are in its cgroup. The containers that have joined the dead
shim of a sandbox are taken away with it. Every step is tried, whatever the one before it said.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from zeropod._fastpath import _activator
from zeropod.api.task_pb2 import DeleteResponse
from zeropod.checkpoint import debris
from zeropod.checkpoint.image import sweep
from zeropod.config import NodeSettings
from zeropod.errors import RuntimeFailed
from zeropod.oci import joined
from zeropod.oci.bundle import Bundle
from zeropod.oci.mounts import unmount_all, unmount_below
from zeropod.oci.runtime import DEFAULT_ROOT, RuntimeOptions
from zeropod.shim import bootstrap, caller, process, remains
from zeropod.shim.invocation import Invocation
from zeropod.task import status

SHIM_ENV: Final = "ZEROPOD_SHIM"
_EXIT_STATUS: Final = 128 + signal.SIGKILL
_RUNTIME_TIMEOUT_S: Final = 20.0
_DEATH_TIMEOUT_S: Final = 5.0
_DYING_TIMEOUT_S: Final = 3.0
"""Below the 5 s that containerd gives to a `delete`."""


def delete(invocation: Invocation) -> bytes:
    """Clean up and return the DeleteResponse that `delete` prints."""
    bundle = Path(invocation.bundle)
    failures: list[str] = []
    dead = False  # a living shim has lost this container only

    def helpers() -> None:
        nonlocal dead
        socket_path = joined.read_address(bundle) or _socket_path(invocation)
        if bootstrap.served(socket_path, _DYING_TIMEOUT_S):
            return
        dead = True
        kill_all(_helpers(socket_path.name))
        bootstrap.remove_dead(socket_path)
        bootstrap.remove_dead(status.socket_path(socket_path))

    def images() -> None:
        sweep(NodeSettings.load().image_root)

    _attempt(helpers, failures)
    if dead:
        for note, own in joined.noted(bundle):  # which containerd may not execute a delete for
            _clear(invocation.namespace, own.name, note, own, failures, dead=True)
            if caller.abandons(invocation.containerd_pid):
                _attempt(partial(remains.remove, own), failures)
    _clear(invocation.namespace, invocation.id, bundle, bundle, failures, dead=dead)
    _attempt(images, failures)
    for failure in failures:
        os.write(2, f"delete {invocation.id}: {failure}\n".encode())
    response = DeleteResponse(pid=_init_pid(bundle), exit_status=_EXIT_STATUS)
    response.exited_at.FromNanoseconds(time.time_ns())
    return response.SerializeToString()


def _clear(
    namespace: str, id: str, note: Path, bundle: Path, failures: list[str], *, dead: bool
) -> None:
    """Take away one container.

    ``note``: where its config.json and its runtime's options are, the bundle or a note of it.
    ``dead``: its shim is.
    """
    rootfs = bundle / "rootfs"
    images = Path(NodeSettings.load().image_root) / f"{namespace}.{id}"

    def dumps() -> None:
        kill_all(debris.criu_with(images))

    def filters() -> None:
        clear_filters(note)

    def runtime_mounts() -> None:
        """The runtime removes its directory, and what a killed one has bound there."""
        unmount_below(_state(namespace, id, note))
        unmount_all(rootfs)

    def runtime() -> None:
        _delete_with_runtime(namespace, id, note)

    def leftovers() -> None:
        for _ in range(10):  # what is forked meanwhile is met again
            if not (found := _cgroup_processes(_cgroups_path(note))):
                return
            kill_all(found)

    def cgroups() -> None:
        """Those of a runtime that was killed before it had written down what it made."""
        for folder in _cgroups(_cgroups_path(note)):
            for below, _, _ in os.walk(folder, topdown=False):
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(below)  # noqa: PTH106

    def mounts() -> None:
        unmount_all(rootfs)
        unmount_below(images)
        if remains.clear(rootfs) and note != bundle:  # containerd will not try again
            remains.remove(bundle)

    with _alone(bundle):  # that `delete` may be executed for it and for its sandbox at once
        for step in (dumps, filters, runtime_mounts) if dead else ():
            _attempt(step, failures)
        for step in (runtime, leftovers, cgroups, mounts):
            _attempt(step, failures)


def _attempt(step: Callable[[], None], failures: list[str]) -> None:
    try:
        step()
    except Exception as error:
        failures.append(f"{getattr(step, '__name__', 'bundle')}: {error}")


@contextlib.contextmanager
def _alone(bundle: Path) -> Iterator[None]:
    with contextlib.ExitStack() as lock:
        with contextlib.suppress(FileNotFoundError):
            lock.enter_context(bootstrap.alone(bundle))
        yield


def clear_filters(bundle: Path) -> None:
    """Take BPF filters, which outlive a shim on kernels without TCX, from the pod's interfaces.

    Only a path that is the namespace's own is followed, which is what the sandbox's bundle has:
    the process whose /proc entry the other bundles name may be gone, and its pid another pod's.
    """
    path = Bundle(str(bundle)).namespace_path("network")
    if not path or Path(path).parts[:2] == ("/", "proc"):
        return
    try:
        netns_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # and its interfaces with it
    try:
        _activator.clear_filters(netns_fd)
    finally:
        os.close(netns_fd)


def _socket_path(invocation: Invocation) -> Path:
    group = bootstrap.group(invocation.bundle, invocation.id)
    return bootstrap.socket_path(invocation.address, invocation.namespace, group)


def _init_pid(bundle: Path) -> int:
    try:
        return int((bundle / "init.pid").read_text())
    except (OSError, ValueError):
        return 0


def _state(namespace: str, id: str, note: Path) -> Path:
    """The runtime's own directory of the container."""
    options = RuntimeOptions.noted(note)
    return Path(options.root or DEFAULT_ROOT) / namespace / id


def _delete_with_runtime(namespace: str, id: str, note: Path) -> None:
    options = RuntimeOptions.noted(note)
    state = _state(namespace, id, note)
    root = state.parent
    argv = [options.binary_name or "runc", "--root", str(root)]
    if options.systemd_cgroup:
        argv.append("--systemd-cgroup")
    done = subprocess.run(
        [*argv, "delete", "--force", id],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_RUNTIME_TIMEOUT_S,
        check=False,
    )
    if state.exists():
        unmount_below(state)
        shutil.rmtree(state, ignore_errors=True)
    if done.returncode and b"does not exist" not in done.stderr:
        raise RuntimeFailed(done.stderr.decode(errors="replace").strip())


def _cgroups_path(bundle: Path) -> str:
    try:
        config = json.loads((bundle / "config.json").read_text())
        return str(config["linux"]["cgroupsPath"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _cgroups(path: str) -> list[Path]:
    """The directories of a cgroup, one per hierarchy that has it."""
    if ":" in path:
        path = _systemd_path(path)
    if not path.strip("/"):
        return []
    found = (root / path.strip("/") for root in process.hierarchies().values())
    return [folder for folder in found if folder.is_dir()]


def _cgroup_processes(path: str) -> set[int]:
    """The processes of a cgroup and of those below it, in every hierarchy."""
    found: set[int] = set()
    for folder in _cgroups(path):
        for file in folder.glob("**/cgroup.procs"):
            with contextlib.suppress(OSError):
                found.update(int(line) for line in file.read_text().split())
    return found - {0, os.getpid()}


def _systemd_path(path: str) -> str:
    """``a-b.slice:prefix:name`` → ``a.slice/a-b.slice/prefix-name.scope``, as systemd nests."""
    slice_, _, rest = path.partition(":")
    prefix, _, name = rest.partition(":")
    words = slice_.removesuffix(".slice").split("-") if slice_ else ["system"]
    nested = [f"{'-'.join(words[: count + 1])}.slice" for count in range(len(words)) if words[0]]
    return "/".join([*nested, f"{prefix}-{name}.scope" if prefix else f"{name}.scope"])


def _helpers(shim: str) -> set[int]:
    """Processes that a shim executed: it marks their environment."""
    mark = f"{SHIM_ENV}={shim}".encode()
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(int(folder.name))
    return found - {os.getpid()}


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL, and wait until they are gone or a bound has passed."""
    descriptors = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            descriptors.append(descriptor)
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    deadline = time.monotonic() + _DEATH_TIMEOUT_S
    for descriptor in descriptors:
        select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        os.close(descriptor)
