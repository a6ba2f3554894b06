"""Bulk through a spliced connection against a direct one, of the same app and in turn.

Python apps at both ends that do nothing else, and copy what they move; so with two processors
sender, shim and receiver share them. In each round the pod sleeps and is woken by a connection from
the node and one over its own loopback, both of which are spliced; then there is a direct one of
each. All move the same amount, down (the app sends) and up, in an order drawn anew. What is spliced
the app shows: it sees an address of its own; and the same boot id, or the run fails.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks import pods, report
from benchmarks.client import Origin
from benchmarks.idle import run_ns
from lab.container_images import STATEFUL
from lab.cri import ContainerSpec
from lab.node import Node
from lab.pods import Pod
from lab.steps import LabError, say

ABOUT = "bulk through a spliced connection against a direct one, both ways, in turn"
ROUNDS = 10
BOUND = 0.8
"""What each ratio of the medians, spliced to direct, is held against."""
SIZE = 512 << 20
"""Bytes that one connection moves one way in each round."""

_PORT = 9000
_IDLE = "8s"  # loopback traffic is no activity; nothing on it may take so long
_TIMEOUT_S = 60.0
_SEED = 1
_NODE = "the node"
_APP = Path(__file__).with_name("bulk.py")
_PIECE = memoryview(bytes(1 << 18))


class Connection:
    """To the app of bulk.py."""

    def __init__(self, origin: Origin, address: str, source: str) -> None:
        self._socket = origin.tcp_socket()
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.bind((source, 0))
        self._socket.connect((address, _PORT))
        self._room = bytearray(len(_PIECE))

    def greeting(self) -> list[str]:
        """The app's boot id, and whom it sees; it says so when it is awake."""
        with self._socket.makefile("rb", buffering=0) as stream:
            return stream.readline().decode().split()

    def down(self, size: int) -> None:
        """The app sends so many bytes."""
        self._socket.sendall(struct.pack(">cQ", b"s", size))
        while size:
            read = self._socket.recv_into(self._room, min(size, len(self._room)))
            if not read:
                raise ConnectionError("the app has ended in the middle")
            size -= read

    def up(self, size: int) -> None:
        """The app is sent so many bytes, and has read them."""
        self._socket.sendall(struct.pack(">cQ", b"r", size))
        while size:
            size -= self._socket.send(_PIECE[:size])
        if self._socket.recv(1) != b".":
            raise ConnectionError("the app has ended in the middle")

    def close(self) -> None:
        self._socket.close()


class Way(NamedTuple):
    """From where, to which address, and from which one (empty: the kernel's choice)."""

    origin: Origin
    address: str
    source: str = ""


_MOVES = {"down": Connection.down, "up": Connection.up}


def _connect(
    pod: Pod, ways: Mapping[str, Way], boot_ids: set[str], stack: ExitStack
) -> dict[tuple[str, bool], Connection]:
    """By (way, whether it is spliced). The spliced ones wake the pod.

    Raises LabError where one is not what it should be: spliced, the app sees whom it asked for.
    """
    pods.asleep(pod.containers[0])
    found = {}
    for spliced in (True, False):
        for label, way in ways.items():
            made = found[label, spliced] = Connection(*way)
            stack.callback(made.close)
        for label, way in ways.items():
            boot_id, seen = found[label, spliced].greeting()
            boot_ids.add(boot_id)
            if (seen == way.address) != spliced:
                raise LabError(f"{label}: the app sees {seen}, so who is in the way is not clear")
    return found


class Moved(NamedTuple):
    """Bytes per second, and the processor time of client, shim and app, in seconds per GB."""

    rate: float
    client: float
    shim: float
    app: float


def _used_ns(pids: Sequence[int]) -> list[int]:
    return [time.thread_time_ns(), *map(run_ns, pids)]


def _move(connection: Connection, move: str, pids: Sequence[int]) -> Moved:
    before, begin_ns = _used_ns(pids), time.monotonic_ns()
    _MOVES[move](connection, SIZE)
    took_ns, after = time.monotonic_ns() - begin_ns, _used_ns(pids)
    spent = [(late - early) / SIZE for early, late in zip(before, after, strict=True)]
    return Moved(SIZE * 1e9 / took_ns, *spent)


def _measure(pod: Pod, ways: Mapping[str, Way], rounds: int) -> dict[tuple[str, bool], list[Moved]]:
    """By (way and direction, whether it was spliced)."""
    chance = random.Random(_SEED)
    found: dict[tuple[str, bool], list[Moved]] = {
        (f"{way}, {move}", spliced): []
        for way in ways
        for move in _MOVES
        for spliced in (True, False)
    }
    boot_ids: set[str] = set()
    for number in range(1, rounds + 1):
        with ExitStack() as stack:
            connections = _connect(pod, ways, boot_ids, stack)
            pids = (pod.shim_pid(), pod.containers[0].only_pid())
            todo = [(*key, move) for key in connections for move in _MOVES]
            for way, spliced, move in chance.sample(todo, len(todo)):
                connections[_NODE, False].up(1)  # activity
                moved = _move(connections[way, spliced], move, pids)
                found[f"{way}, {move}", spliced].append(moved)
        if len(boot_ids) != 1:
            raise LabError("the app came back without its memory")
        say(f"{number} of {rounds} rounds")
    return found


def _row(label: str, values: Sequence[Moved]) -> list[str]:
    rates = [f"{ask(moved.rate for moved in values) / 1e6:,.0f}" for ask in (median, min, max)]
    spent = zip(*(moved[1:] for moved in values), strict=True)
    return [label, str(len(values)), *rates, *(f"{median(each):.2f}" for each in spent)]


def run(node: Node, rounds: int) -> report.Report:
    pods.warm_up(node)
    spec = pods.spec(node, "zeropod", _IDLE, activation="splice")
    command = ["python3", "-c", _APP.read_text(), str(_PORT)]
    app = ContainerSpec("bulk", STATEFUL.reference, command=command)
    with pods.running(node, spec, app, _PORT) as pod:
        ways = {
            _NODE: Way(node, pod.address),
            "its own loopback": Way(pod, "127.0.0.1", "127.0.0.2"),
        }
        found = _measure(pod, ways, rounds)
    rates = {key: [moved.rate for moved in values] for key, values in found.items()}
    pairs = {
        label: list(zip(values, rates[label, False], strict=True))
        for (label, spliced), values in rates.items()
        if spliced
    }
    ratios = report.ratios(pairs)
    labels = {key: f"{key[0]}, {'spliced' if key[1] else 'direct'}" for key in found}
    header = ["MB per second", "n", "median", "least", "most"]
    spent = [f"{who}, s per GB" for who in ("client", "shim", "app")]
    body = [_row(labels[key], values) for key, values in found.items()]
    return report.Report(
        f"splice: {SIZE >> 20} MiB through a spliced connection, against a direct one",
        [report.ratio_table(ratios, "spliced / direct"), report.Table([*header, *spent], body)],
        notes=[_verdict(ratio) for ratio in ratios],
        samples={f"{labels[key]} (bytes per second)": values for key, values in rates.items()},
    )


def _verdict(ratio: report.Ratio) -> str:
    met = "met" if ratio.ratio >= BOUND else "not met"
    return f"{ratio.label}: {ratio.ratio:.3f}, bound {BOUND}: {met}"
