"""The ports of a sleeping container are not given to its siblings."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import kernel
from lab.container_images import STATEFUL
from lab.cri import ContainerSpec
from lab.pods import Container

from .conftest import MakePod
from .worldly import IDLE, Told

_RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_UDP = 8083
_WAIT = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit()); signal.pause()"
# What a sibling gets for outgoing connections and for port 0, and when it asks for a port. (Nobody
# has connected to 8082: what is left of a connection would refuse it, too.)
_TAKE = f"""
import socket
def bound(kind, port=0):
    made = socket.socket(socket.AF_INET, kind)
    made.bind(("0.0.0.0", port))
    return made
listener = socket.create_server(("127.0.0.1", 7000))
kept = [socket.create_connection(listener.getsockname()) for _ in range(6)]
kept += [bound(kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM) for _ in range(4)]
print(*(each.getsockname()[1] for each in kept))
for kind, port in ((socket.SOCK_STREAM, 8082), (socket.SOCK_DGRAM, {_UDP})):
    try:
        print(bound(kind, port).getsockname()[1])
    except OSError as error:
        print(error.strerror)
"""
_IN_USE = "Address already in use"


def _sysctl(container: Container, file: Path, value: str = "") -> str:
    """Read it, or write it, in the container's network namespace."""
    with kernel.network_namespace(Path(f"/proc/{container.pid}/ns/net")):
        if value:
            file.write_text(value)
        return file.read_text().strip()


@pytest.fixture
def app(no_leaks: None, make_pod: MakePod) -> Told:
    """It has bound a UDP port, too, and has a sibling that does not sleep."""
    app = Told(make_pod, annotations={**IDLE, "container-names": "stateful"})
    app.do(
        f"""
        import socket
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("0.0.0.0", {_UDP}))
        """
    )
    command = ["/usr/bin/python3", "-c", _WAIT]
    app.pod.add(ContainerSpec("sibling", STATEFUL.reference, command=command))
    return app


def test_a_sibling_does_not_get_them(app: Told) -> None:
    sibling = app.pod.containers[1]
    _sysctl(sibling, _RESERVED, "9000-9002,8081\n")
    app.sleep()
    assert _sysctl(sibling, _RESERVED) == "8080-8083,9000-9002"
    _sysctl(sibling, _RANGE, "8080 8119\n")
    said = sibling.exec("python3", "-c", _TAKE)
    assert said.exit_code == 0, said.stderr
    taken, *by_name = said.stdout.decode().splitlines()
    assert {int(port) for port in taken.split()} <= set(range(8084, 8120))
    assert by_name == [_IN_USE, _IN_USE]
    assert app.do("udp.getsockname()[1]") == _UDP
    said = app.container.exec("cat", str(_RESERVED))  # keeps it awake while it reads
    assert said.stdout == b"8081,9000-9002\n"


def test_they_are_given_back(app: Told) -> None:
    """By the end of the container, also of one that sleeps."""
    sibling = app.pod.containers[1]
    app.sleep()
    assert _sysctl(sibling, _RESERVED) == "8080-8083"
    app.container.stop()
    app.container.wait_exited()
    assert _sysctl(sibling, _RESERVED) == ""
    said = sibling.exec("python3", "-c", _TAKE)
    assert said.stdout.decode().splitlines()[1:] == ["8082", str(_UDP)], said.stderr
