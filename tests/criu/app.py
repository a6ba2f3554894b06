"""The app of these tests: memory that must survive, and an oracle for memory that lived twice.

Port 8080 answers every connection with "<boot id> <count>\\n" and closes; each answer is one line
on stdout, too. A thread makes the files 0, 1, 2, … in /ticks/<boot id>, exclusively: one that is
there already was made by the same memory, run a second time; it leaves /ticks/doubled.

A signal of $HANDLES is one line on stdout, those of $IGNORES are ignored. With $READS each line of
stdin, and its end, is one, too. These lines have the count, but do not add to it.
"""

import os
import secrets
import signal
import socket
import sys
import threading
from pathlib import Path

BOOT = secrets.token_hex(8)
KEPT_OPEN = os.open(__file__, os.O_RDONLY)
"""A file of the root file system, without which CRIU does not restore."""


def create(path: str) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def tick() -> None:
    number, pause = 0, threading.Event()
    while True:
        if not create(f"/ticks/{BOOT}/{number}"):
            create("/ticks/doubled")
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
listener = socket.create_server(("", 8080), backlog=1024)
while True:
    connection, _ = listener.accept()
    with connection:
        count += 1
        print(f"request {count}", flush=True)
        try:
            connection.recv(4096)
            connection.sendall(f"{BOOT} {count}\n".encode())
        except OSError:
            pass
