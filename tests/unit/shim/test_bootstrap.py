"""Which shim, where it listens, and what containerd is told."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any

from zeropod.api import runc_options_pb2, runtimeoptions_pb2
from zeropod.api.bootstrap_pb2 import BootstrapParams, BootstrapResult
from zeropod.errors import InvalidArgument
from zeropod.shim import bootstrap
from zeropod.shim.invocation import Invocation, parse


def bundle(folder: Path, annotations: dict[str, str] | None) -> str:
    (folder / "config.json").write_text(json.dumps({"annotations": annotations}))
    return str(folder)


@pytest.mark.parametrize(
    ("annotations", "group"),
    [
        (None, "me"),
        ({}, "me"),
        ({"io.kubernetes.cri.sandbox-id": "pod"}, "pod"),
        ({"io.containerd.runc.v2.group": "g"}, "g"),
        ({"io.kubernetes.cri.sandbox-id": "pod", "io.containerd.runc.v2.group": "g"}, "g"),
    ],
)
def test_group(tmp_path: Path, annotations: dict[str, str] | None, group: str) -> None:
    assert bootstrap.group(bundle(tmp_path, annotations), "me") == group


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_bundle_without_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidArgument, match=r"config\.json"):
        bootstrap.group(str(tmp_path), "me")


def test_sockets_have_the_names_that_containerds_shims_give_them() -> None:
    path = bootstrap.socket_path("/run/containerd/containerd.sock", "k8s.io", "abc")
    # printf %s /run/containerd/containerd.sock/k8s.io/abc | sha256sum
    name = "a99a1752d3a0fadfb1f869026f16760475df03a572e20f4ccea9e6c1e5470b72"
    assert path == Path("/run/containerd/s") / name
    assert path == bootstrap.socket_path("/run//containerd/containerd.sock", "k8s.io", "abc")
    assert path != bootstrap.socket_path("/run/containerd/containerd.sock", "k8s.io", "abd")


def test_answer_forms() -> None:
    path = Path("/run/containerd/s/x")
    for environ in ({}, {"MAX_SHIM_VERSION": "2"}, {"MAX_SHIM_VERSION": "many"}):
        assert bootstrap.answer(path, environ) == b"unix:///run/containerd/s/x"
    modern = {"version": 3, "address": "unix:///run/containerd/s/x", "protocol": "ttrpc"}
    assert json.loads(bootstrap.answer(path, {"MAX_SHIM_VERSION": "3"})) == modern
    assert json.loads(bootstrap.answer(path, {"MAX_SHIM_VERSION": "2"}, joins=True)) == modern


def test_the_first_binds_and_the_second_finds_it(tmp_path: Path) -> None:
    path = tmp_path / "s/x"
    first = bootstrap.claim(path)
    assert first is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert bootstrap.claim(path) is None
    bootstrap.remove_dead(path)
    assert path.exists(), "a living shim's socket was taken away"
    first.close()
    assert not path.exists()


def test_an_old_shim_leaves_its_successors_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    old = bootstrap.claim(path)
    assert old is not None
    old.withdraw()
    new = bootstrap.claim(path)
    assert new is not None
    old.close()
    assert path.exists()
    new.close()
    assert not path.exists()


def test_a_dead_shims_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    again = bootstrap.claim(path)
    assert again is not None
    again.listening.close()
    bootstrap.remove_dead(path)
    assert not path.exists()


def test_of_many_at_once_exactly_one_binds(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    found: list[bootstrap.ShimSocket | None] = []
    threads = [
        threading.Thread(target=lambda: found.append(bootstrap.claim(path))) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bound = [claimed for claimed in found if claimed is not None]
    assert len(found) == 16
    assert len(bound) == 1
    bound[0].close()


def test_the_umask_is_as_before(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        claimed = bootstrap.claim(tmp_path / "x")
        assert claimed is not None
        claimed.close()
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def invoked(stdin: bytes) -> Invocation:
    return parse(["-namespace", "n", "-id", "a", "start"], {}, "/", stdin=stdin)


def options(stdin: bytes) -> str:
    invocation = invoked(stdin)
    return bootstrap.shim_cgroup(invocation, bootstrap.params(invocation))


def test_shim_cgroup_of_both_kinds_of_options() -> None:
    runc = runc_options_pb2.Options(shim_cgroup="/shims")
    generic = runtimeoptions_pb2.Options(config_body=b'BinaryName = "runc"\nShimCgroup = "/s"')
    for name, message, expected in (
        ("containerd.runc.v1.Options", runc, "/shims"),
        ("runtimeoptions.v1.Options", generic, "/s"),
    ):
        for prefix in ("", "types.containerd.io/"):
            any_ = Any(type_url=prefix + name, value=message.SerializeToString())
            assert options(any_.SerializeToString()) == expected


def test_shim_cgroup_from_a_file(tmp_path: Path) -> None:
    """As an operator of containerd has it, who names a file in place of options."""
    file = tmp_path / "options.toml"
    file.write_text('ShimCgroup = "/s"')
    value = runtimeoptions_pb2.Options(config_path=str(file)).SerializeToString()
    any_ = Any(type_url="runtimeoptions.v1.Options", value=value)
    assert options(any_.SerializeToString()) == "/s"


def test_options_among_bootstrap_parameters() -> None:
    """Those of containerd 2.3 and newer; other extensions are somebody else's."""
    params = BootstrapParams(instance_id="a", namespace="n")
    params.extensions.add().value.type_url = "containerd.io/cri.v1.PodSandboxConfig"
    assert options(params.SerializeToString()) == ""
    value = runc_options_pb2.Options(shim_cgroup="/shims").SerializeToString()
    params.extensions.add().value.CopyFrom(Any(type_url="containerd.runc.v1.Options", value=value))
    assert options(params.SerializeToString()) == "/shims"


def test_no_options_mean_no_cgroup() -> None:
    assert options(b"") == ""
    assert options(b"\xff\xff") == ""


def test_who_has_sent_bootstrap_parameters() -> None:
    """An Any can be read as such, and then its type is a container's id."""
    newest = BootstrapParams(instance_id="a", namespace="n", log_level=-4)
    for params, expected in (
        (newest, newest),
        (BootstrapParams(instance_id="b", namespace="n"), None),
        (BootstrapParams(instance_id="a", namespace="m"), None),
    ):
        assert bootstrap.params(invoked(params.SerializeToString())) == expected
    any_ = Any(type_url="containerd.runc.v1.Options", value=b"n")
    assert bootstrap.params(invoked(any_.SerializeToString())) is None
    assert bootstrap.params(invoked(b"")) is None


def test_the_answer_to_bootstrap_parameters() -> None:
    found = BootstrapResult.FromString(bootstrap.answer(Path("/s/x"), {}, modern=True))
    assert (found.version, found.address, found.protocol) == (3, "unix:///s/x", "ttrpc")


def test_broken_options_are_an_error() -> None:
    any_ = Any(
        type_url="runtimeoptions.v1.Options",
        value=runtimeoptions_pb2.Options(config_body=b"= no").SerializeToString(),
    )
    with pytest.raises(InvalidArgument, match="not TOML"):
        options(any_.SerializeToString())


def test_a_shim_whose_queue_is_full_is_alive(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening, contextlib.ExitStack() as stack:
        listening.bind(str(path))
        listening.listen(0)
        while True:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            try:
                client.connect(str(path))
            except BlockingIOError:
                break
        assert bootstrap.served(path)
    assert not bootstrap.served(path)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    """What a shim listens with, at ``tmp_path / "s"``."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s"))
        made.listen()
        yield made


@contextlib.contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()


def test_a_shim_that_closes_before_it_answers_is_dead(
    tmp_path: Path, listening: socket.socket
) -> None:
    def die() -> None:
        select.select([listening], [], [])
        listening.close()

    with beside(die):
        assert not bootstrap.served(tmp_path / "s", 60)


def test_a_shim_that_refuses_a_connection_and_takes_the_next_is_alive(
    tmp_path: Path, listening: socket.socket
) -> None:
    def serve() -> None:
        for answer in (b"", b"answer"):
            connection, _ = listening.accept()
            with connection:
                connection.sendall(answer)

    with beside(serve):
        assert bootstrap.served(tmp_path / "s", 60)


@pytest.mark.usefixtures("listening")
def test_a_shim_that_says_nothing_is_alive(tmp_path: Path) -> None:
    assert bootstrap.served(tmp_path / "s")
