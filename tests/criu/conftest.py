"""A container over real runc and CRIU: everything below the task service, no containerd.

The test process itself enters a mount namespace of its own with an empty /run (CRIU caches its
kernel tests there) and an empty /tmp, and becomes a subreaper, as a shim is. The container shares
network, IPC and UTS namespaces with a process that stands for the pod's sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lab import kernel, tools
from lab.paths import CHECKOUT, TOOLS
from zeropod._fastpath._netns import socket_in
from zeropod.config import NodeSettings
from zeropod.container.container import Container, CreateRequest
from zeropod.container.events import Event, Stdio
from zeropod.container.phase import Phase
from zeropod.container.pod import Pod
from zeropod.container.scaler import Scaler
from zeropod.container.scaling import make_scaler
from zeropod.container.state import State
from zeropod.errors import NotFound
from zeropod.oci.mounts import unmount_all, unmount_below
from zeropod.oci.runtime import RuntimeOptions

PREFIX = "zeropod.ctrox.dev/"
_CGROUP = f"zeropod-test-{os.getpid()}"
_SANDBOX = "ip link set lo up; echo; exec sleep infinity"


@contextlib.contextmanager
def _kept(directory: Path) -> Iterator[None]:
    """It is where it was afterwards, also if what it is in was mounted over."""
    inside = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield
        if not directory.exists():
            directory.mkdir(parents=True)
            source = f"/proc/{os.getpid()}/fd/{inside}"
            subprocess.run(["mount", "--no-canonicalize", "--rbind", source, directory], check=True)
            os.chdir(directory)
    finally:
        os.close(inside)


@pytest.fixture(scope="session", autouse=True)
def _machine() -> Iterator[None]:
    if os.geteuid():
        pytest.fail("tests/criu needs root: it dumps and restores containers")
    tools.build()
    kernel.unshare(kernel.CLONE_NEWNS)
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for directory in ("/run", "/tmp"):  # /tmp: CRIU's directories there are counted
        with _kept(CHECKOUT):  # which may lie there
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory], check=True)
    kernel.become_subreaper()
    os.environ["PATH"] = f"{TOOLS / 'bin'}:{os.environ['PATH']}"
    yield
    for directory in Path("/sys/fs/cgroup").glob(f"*/{_CGROUP}"):
        with contextlib.suppress(OSError):  # what is left in there, a test has said
            directory.rmdir()


@pytest.fixture
def sandbox() -> Iterator[int]:
    """A process with the namespaces of a pod. Its pid."""
    command = ["unshare", "--net", "--ipc", "--uts", "sh", "-c", _SANDBOX]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


@dataclass
class Box:
    """One container and its surroundings."""

    pod: Pod
    container: Container
    sandbox: int
    ticks: Path
    images: Path
    events: list[Event]
    output: int
    input: int
    _netns: int = field(default=-1)

    @property
    def scaler(self) -> Scaler:
        assert self.container.scaler is not None
        return self.container.scaler

    @property
    def pid(self) -> int:
        return self.container.init.live_pid

    async def ask(self) -> tuple[str, int]:
        """(boot id, count), asked over TCP from inside the pod's network.

        No sleep before the answer: on a busy machine that may take longer than the idle time.
        """
        loop = asyncio.get_running_loop()
        family, kind = socket.AF_INET, socket.SOCK_STREAM
        with (
            self.scaler.inhibit("a request of the test"),
            socket.socket(fileno=socket_in(self._netns, family, kind)) as s,
        ):
            s.setblocking(False)
            await loop.sock_connect(s, ("127.0.0.1", 8080))
            await loop.sock_sendall(s, b"?\n")
            answer = b""
            while data := await loop.sock_recv(s, 4096):
                answer += data
        boot, count = answer.split()
        return boot.decode(), int(count)

    def connect(self, host: str = "127.0.0.1", port: int = 8080) -> socket.socket:
        """A connection of the pod's network that has been begun; it does not block."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        made = socket.socket(fileno=socket_in(self._netns, family, socket.SOCK_STREAM))
        made.setblocking(False)
        made.connect_ex((host, port))
        return made

    def waiting(self) -> int:
        """How many wait for the app, parked or held."""
        assert self.scaler._group is not None
        return self.scaler._group.stats()["held"]  # type: ignore[attr-defined,no-any-return]

    async def asleep(self) -> None:
        await self.scaler.until(Phase.ASLEEP)

    def newest(self) -> Path:
        """The images of this sleep."""
        return max(self.images.glob("*/[0-9]*"), key=lambda path: int(path.name)) / "images"

    def doubled(self) -> bool:
        return (self.ticks / "doubled").exists()

    def lines(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            return os.read(self.output, 1 << 20).decode().splitlines()
        return []


MakeBox = Callable[..., Coroutine[Any, Any, Box]]


@pytest.fixture
async def make_box(tmp_path: Path, sandbox: int) -> AsyncIterator[MakeBox]:
    made: list[Box] = []
    pods: list[Pod] = []

    async def make(
        *,
        cgroup_namespace: bool = False,
        pid_namespace: bool = True,
        images: Path | None = None,
        binary: Path | str = "runc",
        app: str = "app.py",
        start: bool = True,
        env: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        **annotations: str,
    ) -> Box:
        bundle, ticks = tmp_path / "bundle", tmp_path / "ticks"
        ticks.mkdir()
        own = {"pid": pid_namespace, "mount": True, "cgroup": cgroup_namespace}
        kinds = [kind for kind in own if own[kind]]
        _write_bundle(bundle, app, ticks, sandbox, kinds, annotations, env or {})
        fifos = [tmp_path / name for name in ("in", "out")]
        for fifo in fifos:
            os.mkfifo(fifo)
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        stdin, output = (os.open(fifo, flags) for fifo in fifos)
        events: list[Event] = []
        root = images or tmp_path / "i"
        node = NodeSettings(image_root=str(root), tracker_ignore_localhost=False)
        loop = asyncio.get_running_loop()
        pod = Pod(loop, namespace="t", node=node, emit=events.append, make_scaler=make_scaler)
        pods.append(pod)
        request = CreateRequest(
            "c1",
            str(bundle),
            Stdio(*map(str, fifos), ""),
            RuntimeOptions(**{"binary_name": str(binary), "root": "/run/runc", **(options or {})}),
        )
        container = await Container.create(request, pod)
        netns = os.open(f"/proc/{sandbox}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        made.append(Box(pod, container, sandbox, ticks, root, events, output, stdin, netns))
        if not start:
            return made[-1]
        await container.start()
        if container.scaler is not None:
            await container.scaler.until(Phase.AWAKE)
        return made[-1]

    yield make
    loop = asyncio.get_running_loop()
    for box in made:
        loop.add_reader(box.output, box.lines)  # as containerd reads; else its end waits for that
        with contextlib.suppress(NotFound):
            await box.container.kill(9)
        await box.container.wait()
        if box.container.state_now is not State.DELETED:
            await box.container.delete()
        await box.container.close()
        loop.remove_reader(box.output)
        os.close(box.output)
        os.close(box.input)
        os.close(box._netns)
    for pod in pods:
        await pod.close()


def _write_bundle(
    bundle: Path,
    app: str,
    ticks: Path,
    sandbox: int,
    own: list[str],
    annotations: dict[str, str],
    env: Mapping[str, str],
) -> None:
    rootfs = bundle / "rootfs"
    for name in ("usr", "proc", "dev", "sys", "etc", "tmp", "ticks"):
        (rootfs / name).mkdir(parents=True)
    for name in ("lib", "lib64", "bin", "sbin"):
        (rootfs / name).symlink_to(f"usr/{name}")
    (bundle / "hosts").write_text("127.0.0.1 localhost\n")
    shutil.copy(Path(__file__).parent / app, rootfs / "app.py")
    subprocess.run(["runc", "spec"], cwd=bundle, check=True)
    config = json.loads((bundle / "config.json").read_text())
    config.pop("hostname")
    config["process"] |= {
        "terminal": False,
        "args": ["/usr/bin/python3", "-S", "/app.py"],
        "env": [*config["process"]["env"], *(f"{key}={value}" for key, value in env.items())],
        "noNewPrivileges": True,
        "oomScoreAdj": 500,
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 8192, "soft": 4096}],
    }
    config["root"]["readonly"] = False
    kinds = {"network": "net", "ipc": "ipc", "uts": "uts"}
    linux = config["linux"]
    linux["namespaces"] = [
        *({"type": kind} for kind in own),
        *({"type": kind, "path": f"/proc/{sandbox}/ns/{ns}"} for kind, ns in kinds.items()),
    ]
    linux["cgroupsPath"] = f"/{_CGROUP}/c1"
    linux["resources"] = {
        "devices": [{"allow": False, "access": "rwm"}],
        "memory": {"limit": 512 << 20},
        "pids": {"limit": 100},
    }
    linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mount", "reboot"], "action": "SCMP_ACT_ERRNO"}],
    }
    binds = {"/usr": "/usr", "/etc/hosts": str(bundle / "hosts"), "/ticks": str(ticks)}
    config["mounts"] += [
        {"destination": where, "type": "bind", "source": what, "options": ["rbind"]}
        for where, what in binds.items()
    ]
    given = {"scaledown-duration": "50ms"}
    given |= {key.replace("_", "-"): value for key, value in annotations.items()}
    config["annotations"] = {PREFIX + key: value for key, value in given.items()}
    (bundle / "config.json").write_text(json.dumps(config))


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    """Mounts, cgroups, processes and temporary directories of CRIU: the same before and after."""
    before = _things()
    yield
    left = _things() - before
    unmount_below(tmp_path)
    unmount_all(tmp_path)
    assert left == set()


def _things() -> set[str]:
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    cgroups = {str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{_CGROUP}/c1")}
    temporary = {str(path) for path in Path("/tmp").glob(".criu*")}
    runtime = {str(path) for path in Path("/run").glob("runc/*/*")}
    processes = {
        f"{entry.name} {(entry / 'comm').read_text().strip()}"
        for entry in Path("/proc").iterdir()
        if entry.name.isdecimal() and _is_ours(entry)
    }
    return mounts | cgroups | temporary | runtime | processes


def _is_ours(entry: Path) -> bool:
    with contextlib.suppress(OSError):
        return _CGROUP in (entry / "cgroup").read_text()
    return False
