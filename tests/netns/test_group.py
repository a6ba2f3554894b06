"""The verbs of a group of ports, in all orders that matter, and what the kernel side counts."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns import bpf
from tests.netns.conftest import CLIENT_V4, POD_V4, PORT, Namespace, Pod
from tests.netns.test_wake import PROBE, REQUEST, ask
from zeropod._fastpath._activator import Activator, EventKind, RestorePlan
from zeropod._fastpath._activator import clear_filters as native_clear_filters
from zeropod.oci.syscalls import MNT_DETACH, mount, umount2
from zeropod.shim.delete import clear_filters

MS_BIND = 4096


def test_held_connections_reach_an_app_that_did_not_sleep(pod: Pod) -> None:
    group = pod.group()
    with pod.here.listen(PORT) as listener:
        pod.activator.hold(group)
        with pod.client.connect(POD_V4) as made:
            made.sendall(b"hello")
            pod.wait(EventKind.PENDING)
            assert pod.activator.stats(group)["held"] == 1
            pod.activator.awake(group)
            app, _ = listener.accept()
            with app:
                assert app.recv(5) == b"hello"
                app.sendall(b"world")
                assert made.recv(5) == b"world"
        pod.wait(EventKind.READY)
    assert not [event for event in pod.seen if event.kind == EventKind.FIRED]


def test_held_users_fire_when_armed(pod: Pod) -> None:
    group = pod.group()
    pod.activator.hold(group)
    made = pod.client.connect(POD_V4)
    made.sendall(REQUEST)
    pod.wait(EventKind.PENDING)
    assert pod.activator.arm(group, pod.plan("http")) is True
    with made:
        assert made.recv(4096).startswith(b"HTTP/1.1 200")
    assert pod.starts == 1


def test_held_probes_do_not_fire_when_armed(node_pod: Pod) -> None:
    group = node_pod.group()
    node_pod.activator.hold(group)
    assert ask(node_pod.client.connect(POD_V4), PROBE).startswith(b"HTTP/1.1 204")
    assert node_pod.activator.arm(group, node_pod.plan("http")) is False
    assert node_pod.activator.disarm(group) is True


def test_wake_by_request(pod: Pod) -> None:
    group = pod.asleep("http")
    assert pod.activator.wake(group) is True
    assert pod.activator.wake(group) is False
    assert pod.activator.disarm(group) is False
    assert pod.wait(EventKind.FIRED).value == 2
    pod.wait(EventKind.READY)
    assert ask(pod.client.connect(POD_V4)).startswith(b"HTTP/1.1 200")
    assert pod.activator.counters()["redirected"] == 0


def test_disarmed_holds(pod: Pod) -> None:
    group = pod.asleep("http")
    assert pod.activator.disarm(group) is True
    assert pod.activator.wake(group) is False
    with pod.client.connect(POD_V4) as made:
        made.sendall(REQUEST)
        pod.wait(EventKind.PENDING)
        assert pod.starts == 0
        assert pod.activator.arm(group, pod.plan("http")) is True
        assert made.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("cycle", range(10))
def test_a_connection_and_a_disarm_at_once(pod: Pod, cycle: int) -> None:
    """Whoever comes first: fired and FIRED told, or disarmed and the connection is held."""
    group = pod.asleep("http")
    made = pod.client.connect(POD_V4)
    start = threading.Barrier(2)

    def send() -> None:
        start.wait()
        made.sendall(REQUEST)

    sender = threading.Thread(target=send)
    sender.start()
    start.wait()
    disarmed = pod.activator.disarm(group)
    sender.join()
    if disarmed:
        pod.wait(EventKind.PENDING)
        assert pod.activator.arm(group, pod.plan("http")) is True
    else:
        pod.wait(EventKind.FIRED)
    with made:
        assert made.recv(4096).startswith(b"HTTP/1.1 200")
    assert pod.starts == 1


def test_drop_resets_what_is_held(pod: Pod) -> None:
    group = pod.asleep("http")
    pod.activator.disarm(group)
    with pod.client.connect(POD_V4) as made:
        made.sendall(REQUEST)
        pod.wait(EventKind.PENDING)
        pod.activator.drop(group)
        with pytest.raises(ConnectionResetError):
            made.recv(1)
    with pytest.raises(ConnectionRefusedError):
        pod.client.connect(POD_V4)
    with pytest.raises(OSError) as caught:
        pod.activator.arm(group, pod.plan("http"))
    assert caught.value.errno == errno.EINVAL


def test_an_app_that_does_not_come_back(pod: Pod) -> None:
    group = pod.group(connect_timeout_ns=200_000_000)
    pod.activator.hold(group)
    with pod.client.connect(POD_V4) as made:
        made.sendall(REQUEST)
        pod.wait(EventKind.PENDING)
        pod.activator.awake(group)
        assert pod.wait(EventKind.CONNECT_TIMEOUT).value == 1
        with pytest.raises(ConnectionResetError):
            made.recv(1)


def test_a_plan_that_cannot_be_fired(pod: Pod) -> None:
    group = pod.group()
    bad = RestorePlan(["/nowhere/to/be/found"], env={})
    pod.plans.append(bad)
    pod.activator.hold(group)
    pod.activator.arm(group, bad)
    with pod.client.connect(POD_V4) as made:
        made.sendall(REQUEST)
        assert pod.wait(EventKind.FIRE_FAILED).value == errno.ENOENT
        assert pod.activator.arm(group, pod.plan("http")) is True
        assert made.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_restore_that_fails_after_its_processes_ran(pod: Pod) -> None:
    """The ready file came, the processes went: hold again, and a second plan serves the client."""
    group = pod.group()
    pod.activator.hold(group)
    short = RestorePlan(
        ["/bin/sh", "-c", ": > ready"],
        env={},
        cwd=str(pod.folder),
        ready_path=pod.folder / "ready",
    )
    pod.plans.append(short)
    pod.activator.arm(group, short)
    with pod.client.connect(POD_V4) as made:
        made.sendall(REQUEST)
        os.waitpid(pod.wait(EventKind.FIRED).pid, 0)
        pod.children.clear()
        pod.activator.hold(group)
        (pod.folder / "ready").unlink()
        assert pod.activator.arm(group, pod.plan("http")) is True
        assert made.recv(4096).startswith(b"HTTP/1.1 200")


def test_two_groups_and_a_port_that_is_taken(pod: Pod) -> None:
    first = pod.group(8080, 8081)
    with pytest.raises(OSError) as caught:
        pod.group(8082, 8081)
    assert caught.value.errno == errno.EEXIST
    second = pod.group(8082)
    assert first != second
    pod.activator.hold(second)
    with pod.here.listen(8080), pod.client.connect(POD_V4, 8080):
        pass
    assert pod.activator.counters()["redirected"] == 0
    pod.activator.remove_group(second)
    with pytest.raises(OSError) as caught:
        pod.activator.hold(second)
    assert caught.value.errno == errno.ENOENT


def test_nobody_reaches_the_activator_itself(pod: Pod) -> None:
    pod.group()
    table = Path(f"/proc/{pod.here.pid}/net/tcp6").read_text().splitlines()[1:]
    ports = [int(line.split()[1].rpartition(":")[2], 16) for line in table if " 0A " in line]
    assert len(ports) == 1
    with pod.client.make_socket() as made:
        made.settimeout(0.3)
        with pytest.raises(TimeoutError):
            made.connect((POD_V4, ports[0]))
    assert pod.activator.counters()["direct_dropped"] >= 1


# -- activity ----------------------------------------------------------------------------------


def test_inbound_packets_are_activity(pod: Pod) -> None:
    group = pod.group()
    assert pod.activator.last_activity_ns(group) == 0
    before_ns = time.monotonic_ns()
    with pod.here.listen(PORT) as listener, pod.client.connect(POD_V4) as made:
        opened_ns = pod.activator.last_activity_ns(group)
        assert before_ns < opened_ns < time.monotonic_ns()
        app, _ = listener.accept()
        with app:
            app.sendall(b"out")
            assert made.recv(3) == b"out"
            sent_ns = pod.activator.last_activity_ns(group)
            assert sent_ns > opened_ns
            made.sendall(b"in")
            assert app.recv(2) == b"in"
            assert pod.activator.last_activity_ns(group) > sent_ns


@pytest.mark.parametrize("count_loopback", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", POD_V4])
def test_loopback_counts_where_it_is_told_to(
    make_pod: Callable[..., Pod], host: str, count_loopback: bool
) -> None:
    pod = make_pod(count_loopback=count_loopback)
    group = pod.group()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with pod.here.listen(PORT, family), pod.here.connect(host):
        assert (pod.activator.last_activity_ns(group) > 0) is count_loopback


def test_outgoing_connections_are_no_activity(pod: Pod) -> None:
    group = pod.group()
    with pod.client.listen(PORT) as listener, pod.here.connect(CLIENT_V4) as made:
        peer, _ = listener.accept()
        with peer:
            peer.sendall(b"x")
            assert made.recv(1) == b"x"
    assert pod.activator.last_activity_ns(group) == 0


# -- nothing is left -----------------------------------------------------------------------------


def test_close_with_everything_under_way(pod: Pod) -> None:
    group = pod.asleep("banner")
    spliced = pod.client.connect(POD_V4)
    assert spliced.recv(64) == b"220 ready\r\n"
    pod.wait(EventKind.READY)
    pod.activator.hold(group)
    held = pod.client.connect(POD_V4)
    held.sendall(REQUEST)
    pod.wait(EventKind.PENDING)
    pod.activator.close()
    pod.activator.close()
    for made in (spliced, held):
        with made, pytest.raises(ConnectionResetError):
            made.recv(1)
    with pytest.raises(ValueError, match="closed"):
        pod.activator.hold(group)


VICTIM = """
import os, signal, sys
from zeropod._fastpath._activator import Activation, Activator
way, clsact = Activation[sys.argv[2]], sys.argv[3] == "clsact"
activator = Activator(int(sys.argv[1]), count_loopback=False, force_clsact=clsact)
activator.hold(activator.add_group((8080,), probe_detection=True, probe_buffer_size=1024,
                                   connect_timeout_ns=1, proxy_timeout_ns=0,
                                   activation=way))
print("up", flush=True)
signal.pause()
"""


def kill_an_activator(here: Namespace, way: str, hook: str) -> set[bpf.Id]:
    """The BPF objects of a process that was killed with its port asleep."""
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(here.fd), way, hook],
        stdout=subprocess.PIPE,
        pass_fds=[here.fd],
    )
    assert victim.stdout and victim.stdout.readline() == b"up\n"
    ids = bpf.held_ids(victim.pid)
    assert all(map(bpf.exists, ids))
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    return ids


@pytest.mark.parametrize("way", ["PARK", "SPLICE"])
def test_kill_leaves_nothing(wire: tuple[Namespace, Namespace], way: str) -> None:
    here, client = wire
    ids = kill_an_activator(here, way, "tcx")
    assert {id.kind for id in ids} >= {"link_id", "map_id"}
    bpf.wait_gone(ids)
    with here.listen(PORT), client.connect(POD_V4):
        pass


def test_delete_takes_the_filters_of_a_dead_shim(
    wire: tuple[Namespace, Namespace], tmp_path: Path
) -> None:
    here, client = wire
    netns = tmp_path / "netns"
    netns.touch()
    network = {"type": "network", "path": str(netns)}
    (tmp_path / "config.json").write_text(json.dumps({"linux": {"namespaces": [network]}}))
    mount(f"/proc/{here.pid}/ns/net", str(netns), "", MS_BIND, "")
    try:
        ids = kill_an_activator(here, "SPLICE", "clsact")
        maps = {id for id in ids if id.kind == "map_id"}
        with here.listen(PORT), client.make_socket() as made:
            assert maps and all(map(bpf.exists, maps))
            with pytest.raises(ConnectionRefusedError):  # sent to the dead activator's port
                made.connect((POD_V4, PORT))
            clear_filters(tmp_path)
            bpf.wait_gone(ids)
            client.connect(POD_V4).close()
        clear_filters(tmp_path)  # nothing is there: nothing to say
    finally:
        umount2(str(netns), MNT_DETACH)


def test_who_was_parked_by_a_dead_shim_gets_in_after_its_delete(
    wire: tuple[Namespace, Namespace],
) -> None:
    """Nobody puts his SYN back any more; he sends it again."""
    here, client = wire
    ids = kill_an_activator(here, "PARK", "clsact")
    with here.listen(PORT), client.make_socket() as made:
        made.setblocking(False)
        made.connect_ex((POD_V4, PORT))
        native_clear_filters(here.fd)
        bpf.wait_gone(ids)
        assert select.select([], [made], [], 60)[1]
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_delete_follows_no_pid(wire: tuple[Namespace, Namespace], tmp_path: Path) -> None:
    here, _ = wire
    network = {"type": "network", "path": f"/proc/{here.pid}/ns/net"}
    (tmp_path / "config.json").write_text(json.dumps({"linux": {"namespaces": [network]}}))
    ids = kill_an_activator(here, "SPLICE", "clsact")
    clear_filters(tmp_path)
    maps = {id for id in ids if id.kind == "map_id"}
    assert maps and all(map(bpf.exists, maps))
    native_clear_filters(here.fd)
    bpf.wait_gone(ids)


def test_a_namespace_that_is_none() -> None:
    with Path("/dev/null").open() as file, pytest.raises(OSError, match="descriptors"):
        Activator(file.fileno(), count_loopback=False)
