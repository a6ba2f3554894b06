"""What is given back before a sleep is given back, and nothing that was in use has changed.

Each test runs in an interpreter of its own, whose memory is then nobody else's business.
"""

from __future__ import annotations

import subprocess
import sys

_BEGIN = """
import asyncio, os, socket, sys
import uvloop
from zeropod._fastpath import _heap

def private_kib():
    keys = "Private_Dirty", "Private_Clean"
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith(keys))

private_kib()
"""


def _run(script: str) -> None:
    argv = [sys.executable, "-c", _BEGIN + script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_unused_buffer_of_a_loop() -> None:
    _run("""
loop = uvloop.new_event_loop()
before = private_kib()
_heap.release(loop)
assert private_kib() < before - 200, (before, private_kib())
""")


def test_a_loop_goes_on_with_what_it_had() -> None:
    """Timers, watched descriptors and transports of before; and its buffer is used to the end."""
    _run("""
async def work():
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    reader, writer = await asyncio.open_connection(sock=theirs)
    fired = loop.create_future()
    loop.call_later(0.05, fired.set_result, None)
    for round in range(3):
        _heap.release(loop)
        data = bytes(range(1, 251)) * 4000
        sending = loop.run_in_executor(None, ours.sendall, data)
        assert await reader.readexactly(len(data)) == data
        await sending
    await fired
    writer.close()
uvloop.run(work())
""")


def test_only_zeros_go() -> None:
    """Of an object of many pages, whole pages in it and parts of pages at its ends."""
    _run("""
class Large:
    __slots__ = [f"s{n:05}" for n in range(20000)]
object = Large()
names = Large.__slots__
kept = {name: [name] for name in names[::1500]} | {names[0]: 1, names[-1]: 2}
for name, value in kept.items():
    setattr(object, name, value)
before = private_kib()
_heap.release(object)
assert private_kib() < before - 50, (before, private_kib())
for name in names:
    assert getattr(object, name, None) is kept.get(name), name
""")


def test_names_that_were_looked_up() -> None:
    _run("""
class Kind:
    pass
name = "never_" + str(os.getpid())
counted = sys.getrefcount(name)
getattr(Kind(), name, None)
assert sys.getrefcount(name) > counted
_heap.release(Kind())
assert sys.getrefcount(name) == counted, (sys.getrefcount(name), counted)
""")


def test_what_was_freed_below_the_top() -> None:
    _run("""
blocks = [bytearray(100_000) for _ in range(100)]
for block in blocks:
    block[:] = b"x" * len(block)
del blocks[:-1]
before = private_kib()
_heap.release(object())
assert blocks[0] == b"x" * 100_000
assert private_kib() < before - 5_000, (before, private_kib())
""")
