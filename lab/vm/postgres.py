"""PostgreSQL, a postmaster with workers, as its own user.

It has System V shared memory attached, which CRIU dumps only with an IPC namespace of its own: as a
container without CRI, not in a pod. It is asked by the simple form of its protocol.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from lab import kernel, processes, waiting
from lab.node import Node
from lab.vm import apps
from lab.vm.pods import CGROUP, IDLE, PATIENCE_S, PREFIX, users


def check(node: Node) -> str:
    name, netns, group = "postgres-1", "/run/netns/postgres", "/postgres-1"
    ctr = ["ctr", "--namespace=k8s.io"]
    node.run([*ctr, "images", "import", str(apps.POSTGRES.archive)], timeout=PATIENCE_S)
    node.run(["ip", "netns", "add", "postgres"])
    node.run(["ip", "-n", "postgres", "link", "set", "lo", "up"])
    annotations = [f"--annotation={PREFIX}{key}={value}" for key, value in IDLE.items()]
    runtime = ["--runtime=io.containerd.zeropod.v2", f"--with-ns=network:{netns}"]
    more = [f"--cgroup={group}", f"--annotation={PREFIX}ports-map={name}=5432"]
    node.run(
        [*ctr, "run", "--detach", *runtime, *more, *annotations, apps.POSTGRES.reference, name],
        timeout=PATIENCE_S,
    )
    try:
        return _ask_postgres(Path(netns), CGROUP / group.strip("/"))
    finally:
        node.run([*ctr, "tasks", "rm", "--force", name], timeout=PATIENCE_S)
        node.run([*ctr, "containers", "rm", name], timeout=PATIENCE_S)
        node.run(["ip", "netns", "delete", "postgres"])


def _ask_postgres(netns: Path, group: Path) -> str:
    def query(sql: str) -> list[str] | None:
        with kernel.network_namespace(netns):
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with connection:
            connection.settimeout(PATIENCE_S)
            try:
                connection.connect(("127.0.0.1", 5432))
                return _query(connection, sql)
            except (ConnectionError, _StartingUp):
                return None

    def running() -> set[int]:
        pids = [pid for file in group.rglob("cgroup.procs") for pid in file.read_text().split()]
        return {int(pid) for pid in pids if processes.alive(int(pid))}

    (started,) = waiting.until("PostgreSQL", lambda: query("SELECT pg_postmaster_start_time()"))
    waiting.until("a table", lambda: query("CREATE TABLE seen (n int)") is not None)
    for number in range(1, 4):
        assert query("INSERT INTO seen VALUES (1)") == []
        assert set(users(running())) == {999}
        waiting.until("its sleep", lambda: not running())
        found = query("SELECT pg_postmaster_start_time() UNION ALL SELECT NULL FROM seen")
        assert found is not None and found[0] == started, (started, found)
        assert len(found) == 1 + number, found
    return "three sleeps of one postmaster and its workers, by uid 999"


class _StartingUp(Exception):
    """PostgreSQL does not take queries yet."""


def _query(connection: socket.socket, sql: str) -> list[str]:
    """The first column of what a query of the simple protocol gives, NULL as ""."""
    start = struct.pack("!i", 196608) + b"user\0postgres\0database\0postgres\0\0"
    connection.sendall(struct.pack("!i", len(start) + 4) + start)
    stream = connection.makefile("rb")
    rows: list[str] = []
    asked = False
    while head := stream.read(5):
        kind, size = head[:1], struct.unpack("!i", head[1:])[0] - 4
        body = stream.read(size)
        if kind == b"E":
            if b"C57P03\0" in body:
                raise _StartingUp
            raise AssertionError(body)
        if kind == b"D":
            (length,) = struct.unpack("!i", body[2:6])
            rows.append(body[6 : 6 + max(length, 0)].decode())
        if kind == b"Z":
            if asked:
                return rows
            text = sql.encode() + b"\0"
            connection.sendall(b"Q" + struct.pack("!i", len(text) + 4) + text)
            asked = True
    raise ConnectionResetError("PostgreSQL has closed the connection")
