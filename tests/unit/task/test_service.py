"""Every RPC: what it asks of the container, what it answers, and the code of each refusal."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty

from tests.unit.task.conftest import Shim
from tests.unit.task.fake import EXIT, PID
from zeropod.api import cgroups_v2_pb2, runc_options_pb2, runtimeoptions_pb2
from zeropod.api import task_pb2 as pb
from zeropod.api import task_types_pb2 as types
from zeropod.api.types_pb2 import Mount
from zeropod.container.events import Stdio
from zeropod.container.stats import Usage
from zeropod.errors import (
    AnnotationError,
    Code,
    FailedPrecondition,
    IllegalTransition,
    NotFound,
    RestoreFailed,
    RuntimeFailed,
    ZeropodError,
)
from zeropod.oci.mounts import Mount as OciMount
from zeropod.ttrpc import RemoteError
from zeropod.version import VERSION

if TYPE_CHECKING:
    from google.protobuf.message import Message

# Every method with a request that names container c1.
REQUESTS: dict[str, tuple[Message, type[Message]]] = {
    "Start": (pb.StartRequest(id="c1"), pb.StartResponse),
    "Exec": (pb.ExecProcessRequest(id="c1", exec_id="e1"), Empty),
    "Kill": (pb.KillRequest(id="c1", signal=15), Empty),
    "Delete": (pb.DeleteRequest(id="c1"), pb.DeleteResponse),
    "State": (pb.StateRequest(id="c1"), pb.StateResponse),
    "Wait": (pb.WaitRequest(id="c1"), pb.WaitResponse),
    "Pids": (pb.PidsRequest(id="c1"), pb.PidsResponse),
    "Stats": (pb.StatsRequest(id="c1"), pb.StatsResponse),
    "CloseIO": (pb.CloseIORequest(id="c1", stdin=True), Empty),
    "ResizePty": (pb.ResizePtyRequest(id="c1", width=80, height=24), Empty),
    "Pause": (pb.PauseRequest(id="c1"), Empty),
    "Resume": (pb.ResumeRequest(id="c1"), Empty),
    "Update": (pb.UpdateTaskRequest(id="c1"), Empty),
    "Checkpoint": (pb.CheckpointTaskRequest(id="c1", path="/p"), Empty),
}
VERBS = {"Exec": "add_exec", "CloseIO": "close_io", "ResizePty": "resize"}


async def refused(shim: Shim, method: str, request: Message) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await shim.call(method, request, Empty)
    return caught.value


async def test_create_hands_everything_on(shim: Shim) -> None:
    options = runc_options_pb2.Options(binary_name="crun", systemd_cgroup=True)
    request = pb.CreateTaskRequest(
        id="c1",
        bundle="/b",
        rootfs=[Mount(type="overlay", source="s", target="", options=["lowerdir=/l", "ro"])],
        stdin="/i",
        stdout="/o",
        stderr="/e",
        options=Any(type_url="containerd.runc.v1.Options", value=options.SerializeToString()),
    )
    assert (await shim.call("Create", request, pb.CreateTaskResponse)).pid == PID
    made = shim.maker["c1"].request
    assert (made.id, made.bundle) == ("c1", "/b")
    assert made.stdio == Stdio("/i", "/o", "/e", terminal=False)
    assert made.rootfs == (OciMount("overlay", "s", ("lowerdir=/l", "ro"), ""),)
    assert (made.options.binary_name, made.options.systemd_cgroup) == ("crun", True)


async def test_create_restores_from_what_the_options_name(shim: Shim) -> None:
    """CriuImagePath, where the request itself names no checkpoint."""
    for id, checkpoint, expected in (("c1", "", "/images"), ("c2", "/given", "/given")):
        value = runc_options_pb2.Options(criu_image_path="/images").SerializeToString()
        request = pb.CreateTaskRequest(
            id=id,
            bundle="/b",
            checkpoint=checkpoint,
            options=Any(type_url="containerd.runc.v1.Options", value=value),
        )
        await shim.call("Create", request, pb.CreateTaskResponse)
        assert shim.maker[id].request.checkpoint == expected


async def test_create_takes_an_id_once(shim: Shim) -> None:
    shim.maker.gate = asyncio.Event()
    first = asyncio.create_task(shim.create())
    second = asyncio.create_task(shim.create())
    done, _ = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
    assert done == {second}
    assert isinstance(error := second.exception(), RemoteError)
    assert error.status == Code.ALREADY_EXISTS
    # Nobody sees it before it is complete, and the shim does not end meanwhile.
    assert (await refused(shim, "State", pb.StateRequest(id="c1"))).status == Code.NOT_FOUND
    await shim.call("Shutdown", pb.ShutdownRequest(id="c1"), Empty)
    assert not shim.ended.is_set()
    shim.maker.gate.set()
    assert (await first).pid == PID


async def test_a_failed_create_leaves_the_id_free(shim: Shim) -> None:
    shim.maker.fails = RuntimeFailed("runc create c1: no such rootfs")
    with pytest.raises(RemoteError, match="runc create c1: no such rootfs") as caught:
        await shim.create()
    assert caught.value.status == Code.UNKNOWN
    shim.maker.fails = AnnotationError("zeropod.ctrox.dev/pre-dump", "maybe", "true or false")
    with pytest.raises(RemoteError, match="pre-dump: 'maybe' is not valid") as caught:
        await shim.create()
    assert caught.value.status == Code.INVALID_ARGUMENT
    shim.maker.fails = None
    assert (await shim.create()).pid == PID


TOML = runtimeoptions_pb2.Options(config_body=b"Nonsense = 1").SerializeToString()


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (pb.CreateTaskRequest(bundle="/b"), Code.INVALID_ARGUMENT, "not a valid id"),
        (pb.CreateTaskRequest(id="c1"), Code.INVALID_ARGUMENT, "absolute path"),
        (pb.CreateTaskRequest(id="c1", bundle="b"), Code.INVALID_ARGUMENT, "absolute path"),
        (pb.CreateTaskRequest(id="--root", bundle="/b"), Code.INVALID_ARGUMENT, "'--root'"),
        (pb.CreateTaskRequest(id="../c1", bundle="/b"), Code.INVALID_ARGUMENT, "'../c1'"),
        (pb.CreateTaskRequest(id="c\n", bundle="/b"), Code.INVALID_ARGUMENT, "not a valid id"),
        (pb.CreateTaskRequest(id="c" * 129, bundle="/b"), Code.INVALID_ARGUMENT, "not a valid id"),
        (
            pb.CreateTaskRequest(id="c1", bundle="/b", checkpoint="images"),
            Code.INVALID_ARGUMENT,
            "checkpoint 'images': expected an absolute path",
        ),
        (
            pb.CreateTaskRequest(
                id="c1",
                bundle="/b",
                options=Any(type_url="runtimeoptions.v1.Options", value=TOML),
            ),
            Code.INVALID_ARGUMENT,
            "'Nonsense' is not known",
        ),
    ],
)
async def test_create_refuses(
    shim: Shim, request_: pb.CreateTaskRequest, code: Code, text: str
) -> None:
    error = await refused(shim, "Create", request_)
    assert (error.status, len(shim.registry)) == (code, 0)
    assert text in str(error)


async def test_start(shim: Shim) -> None:
    await shim.create()
    assert (await shim.call("Start", pb.StartRequest(id="c1"), pb.StartResponse)).pid == PID
    request = pb.StartRequest(id="c1", exec_id="e1")
    assert (await shim.call("Start", request, pb.StartResponse)).pid == PID + 1
    assert ("start", "e1") in shim.maker["c1"].calls


async def test_exec(shim: Shim) -> None:
    await shim.create()
    spec = Any(type_url="types.containerd.io/opencontainers/runtime-spec/1/Process", value=b"{}")
    request = pb.ExecProcessRequest(
        id="c1", exec_id="e1", terminal=True, stdin="/i", stdout="/o", stderr="/e", spec=spec
    )
    await shim.call("Exec", request, Empty)
    assert ("add_exec", "e1", b"{}", Stdio("/i", "/o", "/e", terminal=True)) in (
        shim.maker["c1"].calls
    )


@pytest.mark.parametrize("exec_id", ["", ".", "..", "a/b", "-v", "a\0b", "ä", "x" * 129])
async def test_exec_refuses_an_id_that_cannot_name_a_file(shim: Shim, exec_id: str) -> None:
    await shim.create()
    error = await refused(shim, "Exec", pb.ExecProcessRequest(id="c1", exec_id=exec_id))
    assert error.status == Code.INVALID_ARGUMENT


async def test_kill(shim: Shim) -> None:
    await shim.create()
    await shim.call("Kill", pb.KillRequest(id="c1", signal=9, all=True), Empty)
    await shim.call("Kill", pb.KillRequest(id="c1", signal=64, exec_id="e1"), Empty)
    assert shim.maker["c1"].calls[-2:] == [("kill", 9, "", True), ("kill", 64, "e1", False)]
    error = await refused(shim, "Kill", pb.KillRequest(id="c1", signal=65))
    assert error.status == Code.INVALID_ARGUMENT


async def test_delete_of_an_exec_keeps_the_container(shim: Shim) -> None:
    await shim.create()
    request = pb.DeleteRequest(id="c1", exec_id="e1")
    gone = await shim.call("Delete", request, pb.DeleteResponse)
    assert (gone.pid, gone.exit_status) == (PID, EXIT.status)
    assert gone.exited_at.ToNanoseconds() == EXIT.at_ns
    assert len(shim.registry) == 1


async def test_delete_of_init_forgets_the_container(shim: Shim) -> None:
    await shim.create()
    gone = await shim.call("Delete", pb.DeleteRequest(id="c1"), pb.DeleteResponse)
    assert (gone.pid, gone.exit_status) == (PID, EXIT.status)
    assert (await refused(shim, "Delete", pb.DeleteRequest(id="c1"))).status == Code.NOT_FOUND
    assert (await shim.create()).pid == PID


async def test_a_failed_delete_keeps_the_container(shim: Shim) -> None:
    await shim.create()
    shim.maker["c1"].fails["delete"] = IllegalTransition("cannot delete a running container c1")
    error = await refused(shim, "Delete", pb.DeleteRequest(id="c1"))
    assert error.status == Code.FAILED_PRECONDITION
    assert len(shim.registry) == 1


async def test_state(shim: Shim) -> None:
    await shim.create()
    now = await shim.call("State", pb.StateRequest(id="c1"), pb.StateResponse)
    assert (now.id, now.bundle, now.pid, now.status) == ("c1", "/b", PID, types.RUNNING)
    assert not now.HasField("exited_at")
    shim.maker["c1"].exited.set()
    now = await shim.call("State", pb.StateRequest(id="c1"), pb.StateResponse)
    assert (now.status, now.exit_status) == (types.STOPPED, EXIT.status)
    assert now.exited_at.ToNanoseconds() == EXIT.at_ns


async def test_wait_answers_at_the_end_and_not_before(shim: Shim) -> None:
    await shim.create()
    waiting = asyncio.create_task(shim.call("Wait", pb.WaitRequest(id="c1"), pb.WaitResponse))
    await shim.call("State", pb.StateRequest(id="c1"), pb.StateResponse)
    assert not waiting.done()
    shim.maker["c1"].exited.set()
    answer = await waiting
    assert (answer.exit_status, answer.exited_at.ToNanoseconds()) == (EXIT.status, EXIT.at_ns)


async def test_pids_names_execs(shim: Shim) -> None:
    await shim.create()
    init, exec = (await shim.call("Pids", pb.PidsRequest(id="c1"), pb.PidsResponse)).processes
    assert (init.pid, init.HasField("info")) == (PID, False)
    assert (exec.pid, exec.info.type_url) == (PID + 1, "containerd.runc.v1.ProcessDetails")
    assert runc_options_pb2.ProcessDetails.FromString(exec.info.value).exec_id == "e1"


async def test_stats(shim: Shim) -> None:
    await shim.create()
    shim.maker["c1"].usage = Usage(v2=True, cpu_ns=5_000_000, memory=4096)
    stats = (await shim.call("Stats", pb.StatsRequest(id="c1"), pb.StatsResponse)).stats
    assert stats.type_url == "io.containerd.cgroups.v2.Metrics"
    metrics = cgroups_v2_pb2.Metrics.FromString(stats.value)
    assert (metrics.cpu.usage_usec, metrics.memory.usage) == (5000, 4096)


async def test_close_io_concerns_stdin_alone(shim: Shim) -> None:
    await shim.create()
    calls = shim.maker["c1"].calls
    await shim.call("CloseIO", pb.CloseIORequest(id="c1"), Empty)
    assert ("close_io", "") not in calls
    await shim.call("CloseIO", pb.CloseIORequest(id="c1", exec_id="e1", stdin=True), Empty)
    assert calls[-1] == ("close_io", "e1")


async def test_resize_in_characters(shim: Shim) -> None:
    await shim.create()
    request = pb.ResizePtyRequest(id="c1", exec_id="e1", width=132, height=43)
    await shim.call("ResizePty", request, Empty)
    assert shim.maker["c1"].calls[-1] == ("resize", 132, 43, "e1")
    error = await refused(shim, "ResizePty", pb.ResizePtyRequest(id="c1", width=65536))
    assert (error.status, str(error)) == (Code.INVALID_ARGUMENT, "resize: 65536x0 is too large")


async def test_update_takes_the_limits_as_json(shim: Shim) -> None:
    await shim.create()
    resources = Any(type_url="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources")
    resources.value = b'{"memory": {"limit": 5}}'
    await shim.call("Update", pb.UpdateTaskRequest(id="c1", resources=resources), Empty)
    assert shim.maker["c1"].calls[-1] == ("update", {"memory": {"limit": 5}})
    for value in (b"{", b"[1]"):
        resources.value = value
        request = pb.UpdateTaskRequest(id="c1", resources=resources)
        assert (await refused(shim, "Update", request)).status == Code.INVALID_ARGUMENT


async def test_checkpoint_options_become_flags(shim: Shim) -> None:
    await shim.create()
    calls = shim.maker["c1"].calls
    await shim.call("Checkpoint", pb.CheckpointTaskRequest(id="c1", path="/p"), Empty)
    assert calls[-1] == ("checkpoint", "/p", ["--leave-running"], "")
    wanted = runc_options_pb2.CheckpointOptions(
        exit=True,
        open_tcp=True,
        external_unix_sockets=True,
        terminal=True,
        file_locks=True,
        empty_namespaces=["network"],
        cgroups_mode="soft",
        work_path="/w",
    )
    given = Any(type_url="containerd.runc.v1.CheckpointOptions", value=wanted.SerializeToString())
    request = pb.CheckpointTaskRequest(id="c1", path="/p", options=given)
    await shim.call("Checkpoint", request, Empty)
    flags = ["--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks"]
    flags += ["--empty-ns", "network", "--manage-cgroups-mode", "soft"]
    assert calls[-1] == ("checkpoint", "/p", flags, "/w")


@pytest.mark.parametrize(
    "request_",
    [
        pb.CheckpointTaskRequest(id="c1", path="relative"),
        pb.CheckpointTaskRequest(id="c1", path="/p", options=Any(type_url="x.Options")),
        pb.CheckpointTaskRequest(
            id="c1",
            path="/p",
            options=Any(type_url="containerd.runc.v1.CheckpointOptions", value=b"\xff"),
        ),
    ],
)
async def test_a_checkpoint_that_makes_no_sense(
    shim: Shim, request_: pb.CheckpointTaskRequest
) -> None:
    await shim.create()
    assert (await refused(shim, "Checkpoint", request_)).status == Code.INVALID_ARGUMENT


async def test_connect(shim: Shim) -> None:
    answer = await shim.call("Connect", pb.ConnectRequest(id="c1"), pb.ConnectResponse)
    assert (answer.shim_pid, answer.task_pid) == (os.getpid(), 0)
    await shim.create()
    answer = await shim.call("Connect", pb.ConnectRequest(id="c1"), pb.ConnectResponse)
    assert (answer.task_pid, answer.version) == (PID, VERSION)


async def test_shutdown_waits_for_the_last_container(shim: Shim) -> None:
    await shim.create("c1")
    await shim.create("c2")
    for id in ("c1", "c2"):
        await shim.call("Shutdown", pb.ShutdownRequest(id=id, now=True), Empty)
        assert not shim.ended.is_set()
        await shim.call("Delete", pb.DeleteRequest(id=id), pb.DeleteResponse)
    await shim.call("Shutdown", pb.ShutdownRequest(id="c2"), Empty)
    assert shim.ended.is_set()


@pytest.mark.parametrize("method", REQUESTS)
async def test_a_container_that_is_not_there(shim: Shim, method: str) -> None:
    error = await refused(shim, method, REQUESTS[method][0])
    assert (error.status, str(error)) == (Code.NOT_FOUND, "container c1 not found")


@pytest.mark.parametrize("method", REQUESTS)
@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (NotFound("gone"), Code.NOT_FOUND),
        (FailedPrecondition("not now"), Code.FAILED_PRECONDITION),
        (RestoreFailed("restore c1: CRIU exited 1"), Code.UNKNOWN),
        (ZeropodError("other"), Code.UNKNOWN),
        (OSError(28, "No space left on device"), Code.UNKNOWN),
    ],
)
async def test_what_a_container_raises_keeps_its_code_and_words(
    shim: Shim, method: str, raised: Exception, code: Code
) -> None:
    await shim.create()
    shim.maker["c1"].fails[VERBS.get(method, method.lower())] = raised
    error = await refused(shim, method, REQUESTS[method][0])
    assert error.status == code
    assert str(raised) in str(error)


@pytest.mark.parametrize("method", ["Nap", "Events"])
async def test_what_is_not_there_yet_says_so(shim: Shim, method: str) -> None:
    error = await refused(shim, method, pb.StateRequest(id="c1"))
    assert error.status == Code.UNIMPLEMENTED
    assert method in str(error)


async def test_a_shim_that_is_forgotten_ends(
    shim: Shim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """containerd was killed between its Delete and its Shutdown, and has removed the bundle."""
    monkeypatch.setattr("zeropod.task.service._LINGER_S", 0.01)
    for id in ("c1", "c2"):
        (bundle := tmp_path / id).mkdir()
        await shim.create(id, str(bundle))
    await shim.call("Delete", pb.DeleteRequest(id="c1"), pb.DeleteResponse)
    (tmp_path / "c1").rmdir()
    await shim.call("Delete", pb.DeleteRequest(id="c2"), pb.DeleteResponse)
    with pytest.raises(TimeoutError):  # not as long as containerd may find it
        await asyncio.wait_for(shim.ended.wait(), 0.1)
    (tmp_path / "c2").rmdir()
    await asyncio.wait_for(shim.ended.wait(), 10)


async def test_a_container_that_is_forgotten_does_not_keep_its_shim(
    shim: Shim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has ended, its bundle is gone, and the request for the end came while it was there."""
    monkeypatch.setattr("zeropod.task.service._LINGER_S", 0.01)
    (bundle := tmp_path / "c1").mkdir()
    await shim.create("c1", str(bundle))
    bundle.rmdir()
    await shim.call("Shutdown", pb.ShutdownRequest(id="c1"), Empty)
    with pytest.raises(TimeoutError):  # not as long as it lives
        await asyncio.wait_for(shim.ended.wait(), 0.1)
    shim.maker.made["c1"].exited.set()
    await shim.call("Shutdown", pb.ShutdownRequest(id="c1"), Empty)
    await asyncio.wait_for(shim.ended.wait(), 10)
