"""What a container has in common with others: System V objects of its pod, sockets of the host.

A sleep keeps what lives on without the container. What it would break is a reason not to sleep.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import MakePod
from .worldly import Told

IPC = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.shmdt.argtypes = [ctypes.c_void_p]
CREATE = 0o1600
def check(result):
    assert result not in (-1, None), os.strerror(ctypes.get_errno())
    return result
"""


def test_attached_shared_memory_is_a_reason_to_stay_awake(
    no_leaks: None, make_pod: MakePod
) -> None:
    app = Told(make_pod)
    app.do(IPC)
    app.do(
        """
        segment = check(libc.shmget(7, 4096, CREATE))
        memory = check(libc.shmat(segment, None, 0))
        ctypes.memmove(memory, b"shared", 6)
        """
    )
    app.wait_until_awake_because("System V shared memory")
    assert app.do("ctypes.string_at(memory, 6)") == b"shared"
    app.do("check(libc.shmdt(memory))")
    app.sleep()
    app.do("memory = check(libc.shmat(segment, None, 0))")
    assert app.do("ctypes.string_at(memory, 6)") == b"shared"


def test_semaphores_and_queues_live_on(no_leaks: None, make_pod: MakePod) -> None:
    app = Told(make_pod)
    app.do(IPC)
    app.do(
        """
        semaphores = check(libc.semget(8, 1, CREATE))
        check(libc.semctl(semaphores, 0, 16, 5))  # SETVAL
        queue = check(libc.msgget(9, CREATE))
        message = ctypes.create_string_buffer((3).to_bytes(8, "little") + b"hello", 16)
        check(libc.msgsnd(queue, message, 5, 0))
        """
    )
    app.sleep()
    assert app.do("check(libc.semctl(semaphores, 0, 12))") == 5  # GETVAL
    app.do("got = ctypes.create_string_buffer(16); check(libc.msgrcv(queue, got, 8, 3, 0))")
    assert app.do("got.raw[8:13]") == b"hello"


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Path]:
    """A socket of the host that sends back what comes."""
    path = tmp_path / "sockets" / "echo"
    path.parent.mkdir()

    def serve(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(100):
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        threading.Thread(target=accept, daemon=True).start()
        yield path
        listener.shutdown(socket.SHUT_RDWR)


def test_a_connection_to_a_socket_of_the_host(
    no_leaks: None, make_pod: MakePod, echo: Path
) -> None:
    app = Told(make_pod, {"/host": echo.parent})
    app.do(
        """
        import socket
        outside = socket.socket(socket.AF_UNIX)
        outside.connect("/host/echo")
        def say(text):
            outside.sendall(text)
            return outside.recv(100)
        """
    )
    app.wait_until_awake_because("unix socket outside")
    assert app.do("say(b'still connected')") == b"still connected"
    app.do("outside.close()")
    app.sleep()
    app.do("outside = socket.socket(socket.AF_UNIX); outside.connect('/host/echo')")
    assert app.do("say(b'anew')") == b"anew"
