"""The app of these tests: memory that must survive, and an oracle for memory that lived twice.

Port 8080 answers every connection with "<boot id> <count>\\n" and closes; each answer is one line
on stdout, too. A thread makes the files 0, 1, 2, … in /ticks/<boot id>, exclusively: one that is
there already was made by the same memory, run a second time; it leaves /ticks/doubled.
"""

import os
import secrets
import socket
import threading
from pathlib import Path

BOOT = secrets.token_hex(8)


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


BALLAST = os.urandom(8 << 20)
Path(f"/ticks/{BOOT}").mkdir()
threading.Thread(target=tick, daemon=True).start()
listener = socket.create_server(("", 8080), backlog=1024)
count = 0
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
