"""The app of these tests: memory that must survive, and an oracle for memory that lived twice.

Port 8080 answers every connection with "<boot id> <count>\\n" and closes; each answer is one line
on stdout, too. A thread makes the files 0, 1, 2, … in /ticks/<boot id>, exclusively: one that is
there already was made by the same memory, run a second time; it leaves /ticks/doubled.

A signal of $HANDLES is one line on stdout, those of $IGNORES are ignored. With $READS each line of
stdin, and its end, is one, too. These lines have the count, but do not add to it.

$HOST is where it listens, a path for a unix socket; :: is IPv6 alone; $BACKLOG how many may wait.
With $WORKERS there are so many processes with a socket (SO_REUSEPORT) and a memory each. The file
/ticks/port names another port, /ticks/exit is the code to exit with at once.
"""

import os
import secrets
import signal
import socket
import sys
import threading
from pathlib import Path

HOST = os.environ.get("HOST", "")
BACKLOG = int(os.environ.get("BACKLOG", "1024"))
WORKERS = int(os.environ.get("WORKERS", "1"))
for _ in range(WORKERS - 1):
    if os.fork() == 0:
        break
BOOT = secrets.token_hex(8)
KEPT_OPEN = os.open(__file__, os.O_RDONLY)
"""A file of the root file system, without which CRIU does not restore."""


EXIT, OTHER_PORT = Path("/ticks/exit"), Path("/ticks/port")


def listen() -> socket.socket:
    port = int(OTHER_PORT.read_text()) if OTHER_PORT.exists() else 8080
    if HOST.startswith("/"):
        made = socket.socket(socket.AF_UNIX)
        made.bind(HOST)
        made.listen(BACKLOG)
        return made
    family = socket.AF_INET6 if ":" in HOST else socket.AF_INET
    shared = WORKERS > 1
    return socket.create_server((HOST, port), family=family, backlog=BACKLOG, reuse_port=shared)


def create(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def exit_if_told() -> None:
    if EXIT.exists():
        os._exit(int(EXIT.read_text()))


def tick() -> None:
    number, pause = 0, threading.Event()
    while True:
        if not create(f"/ticks/{BOOT}/{number}"):
            create("/ticks/doubled")
        exit_if_told()
        number += 1
        pause.wait(0.001)


def say(what: str) -> None:
    """In one write, for a signal may come in the middle of anything."""
    os.write(1, f"{what} at {count}\n".encode())


def read() -> None:
    for line in sys.stdin:
        say(f"read {line.strip()}")
    say("end of stdin")


BALLAST = os.urandom(8 << 20)
Path(f"/ticks/{BOOT}").mkdir()
threading.Thread(target=tick, daemon=True).start()
count = 0
for number in map(int, os.environ.get("HANDLES", "").split()):
    signal.signal(number, lambda got, _frame: say(f"signal {got}"))
for number in map(int, os.environ.get("IGNORES", "").split()):
    signal.signal(number, signal.SIG_IGN)
if "READS" in os.environ:
    threading.Thread(target=read, daemon=True).start()
listener = listen()
while True:
    connection, _ = listener.accept()
    exit_if_told()
    with connection:
        count += 1
        print(f"request {count}", flush=True)
        try:
            connection.recv(4096)
            connection.sendall(f"{BOOT} {count}\n".encode())
        except OSError:
            pass
