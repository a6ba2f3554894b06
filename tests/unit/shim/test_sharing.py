"""What the zygote does to its memory before it forks changes nothing that a program could notice.

Each test runs in an interpreter of its own, for what `share` does cannot be undone. How much memory
it saves is told by tests/containerd/test_sharing.py, which runs these on the node's interpreter.
"""

from __future__ import annotations

import subprocess
import sys

_BEGIN = """
import gc, os, sys, weakref
from pathlib import Path
import zeropod.shim.assemble
from zeropod.shim import sharing
"""


INTERPRETER = [sys.executable]


def _run(script: str) -> str:
    argv = [*INTERPRETER, "-c", _BEGIN + script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_functions_are_what_they_were() -> None:
    script = """
def outer(a, b=2, *, c=3):
    def inner(d):
        return a, b, c, d
    return inner, [x * a for x in range(3)], (lambda: b)()

def unlisted(): pass

sharing._layout = lambda: frozenset(["__main__ outer.<locals>.inner"])
before = outer.__code__, unlisted.__code__
sharing.share()
assert outer.__code__ is not before[0] and outer.__code__ == before[0]
assert unlisted.__code__ is before[1]
inner, doubled, two = outer(5)
print(inner(1), doubled, two, outer(1, c=0)[0](9))
"""
    assert _run(script) == "(5, 2, 3, 1) [0, 5, 10] 2 (1, 2, 0, 9)\n"


def test_objects_made_later_are_freed() -> None:
    script = """
class Node: pass
old = Node()
sharing.share()
gc.enable()
new, ring = Node(), Node()
ring.self = ring
old.new = new
seen = [weakref.ref(new), weakref.ref(ring)]
del new, ring
gc.collect()
assert seen[0]() is old.new and seen[1]() is None
old.new = None
assert seen[0]() is None
if sys.version_info >= (3, 12):
    assert sys.getrefcount(old) == sys.getrefcount(Node) == sys.getrefcount(None)
"""
    _run(script)


def test_children_live_and_fork_and_end() -> None:
    script = """
import asyncio, json
sharing.share()
for number in range(20):
    pid = os.fork()
    if pid == 0:
        gc.enable()
        async def work():
            await asyncio.sleep(0)
            return [json.loads(json.dumps({"a": [i] * 100})) for i in range(1000)]
        found = asyncio.run(work())
        os._exit(len(found) % 256 if os.fork() == 0 else os.WEXITSTATUS(os.wait()[1]))
    assert os.WEXITSTATUS(os.waitpid(pid, 0)[1]) == 1000 % 256
"""
    _run(script)


def test_paths_are_not_interned() -> None:
    script = """
sharing.share()
part = "never-" + "seen"
path = Path("/" + part + "/x")
assert path.parts == ("/", "never-seen", "x") and path.name == "x"
assert list(Path("/proc/self").glob("statu*")) == [Path("/proc/self/status")]
assert sys.intern(str("never-" + path.parts[1][6:])) is not path.parts[1]
"""
    _run(script)


def test_children_free_nothing_that_they_inherit() -> None:
    """Names in the cache of attributes would be freed when others take their place."""
    script = """
from zeropod._fastpath import _heap
for number in range(500):
    getattr(Path, f"never_{number}", None)
sharing.share()
before = sys.getallocatedblocks()
_heap.forget_names()
assert sys.getallocatedblocks() > before - 50, (before, sys.getallocatedblocks())
"""
    _run(script)


def test_children_compute_no_hash_of_what_they_inherit() -> None:
    """It is in the string itself, behind the length; -1 as long as nobody has asked for it."""
    script = """
import ctypes
text = "".join(["un", "hashed"])
stored = ctypes.c_ssize_t.from_address(id(text) + 24)
assert stored.value == -1
sharing.share()
if sys.version_info >= (3, 12):
    assert stored.value == hash(text)
"""
    _run(script)


def test_twice_is_as_good_as_once() -> None:
    _run("sharing.share()\nsharing.share()\nassert Path('/a/b').parent == Path('/a')")


def test_the_recording_is_of_this_program() -> None:
    """Most functions that it lists are there. If not: python -m benchmarks.layout."""
    script = """
from types import CodeType, FunctionType
def names(code):
    yield code.co_qualname
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from names(const)
there = {f"{f.__globals__.get('__name__')} {name}"
         for f in gc.get_objects() if type(f) is FunctionType for name in names(f.__code__)}
listed = {line for line in sharing._layout() if line.startswith("zeropod.")}
print(len(listed), len(listed - there))
"""
    listed, gone = map(int, _run(script).split())
    assert listed > 200
    assert gone < listed / 10
