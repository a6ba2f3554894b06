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
# What a sibling gets for an outgoing connection and for port 0, and when it asks for a port.
_TAKE = f"""
import socket
def port_of(kind, port=0):
    made = socket.socket(socket.AF_INET, kind)
    try:
        made.bind(("0.0.0.0", port))
    except OSError as error:
        return error.strerror
    return made.getsockname()[1]
listener = socket.create_server(("127.0.0.1", 7000))
client = socket.create_connection(listener.getsockname())
print(client.getsockname()[1], port_of(socket.SOCK_DGRAM), sep=";")
for kind, port in ((socket.SOCK_STREAM, 8080), (socket.SOCK_DGRAM, {_UDP})):
    print(port_of(kind, port))
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
    _sysctl(sibling, _RANGE, "8080 8084\n")
    said = sibling.exec("python3", "-c", _TAKE)
    assert said.stdout.decode().splitlines() == ["8084;8084", _IN_USE, _IN_USE], said.stderr
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
    free = _TAKE.replace("7000", "0")
    said = sibling.exec("python3", "-c", free)
    assert said.stdout.decode().splitlines()[1:] == ["8080", str(_UDP)], said.stderr
