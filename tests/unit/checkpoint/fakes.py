"""A container, an activator and an engine that do as they are told, for the scaler's tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from zeropod._fastpath._activator import Cause, Event, EventKind
from zeropod.checkpoint.image import ImageDir, ImageStore
from zeropod.config import Settings
from zeropod.container.process import Init
from zeropod.container.report import Outcome
from zeropod.container.state import State, Verb, move
from zeropod.oci.reaper import Exit


class FakePlan:
    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.closed = False

    def close(self) -> None:
        self.closed = True


class FakeHeld:
    """What images have held: `changed` is the world's doing."""

    def __init__(self) -> None:
        self.changed: Callable[[], None] | None = None
        self.closed = False

    def watch(self, changed: Callable[[], None]) -> None:
        self.changed = changed

    def close(self) -> None:
        self.closed = True


class FakeReserved:
    def __init__(self) -> None:
        self.calls: list[str] = ["take"]

    def hold(self) -> None:
        self.calls.append("hold")

    def lend(self, keep: Callable[[Sequence[int]], None]) -> None:
        keep((7,))

    def release(self) -> None:
        self.calls.append("release")


class FakeEngine:
    """``dump`` and ``ends`` say how each checkpoint and each finish goes: a value or an error."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dump: list[Exception | None] = []
        self.ends: list[int | Exception] = []
        self.plans: list[FakePlan] = []
        self.plan_error: Exception | None = None
        self.pre_dumps = 0
        self.during_pre_dump: Callable[[], None] = lambda: None
        self.dumping = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.finishing = asyncio.Event()
        self.finish_go_on = asyncio.Event()
        self.finish_go_on.set()
        self.aborted: list[int] = []
        self.held: list[FakeHeld] = []
        self.fitted = 0

    def annotations(self) -> dict[str, str]:
        return {}

    async def pre_dump(self, target: Any, images: ImageDir) -> None:
        self.pre_dumps += 1
        images.make_pre_dump()
        (images.pre_dump / "pages-1.img").write_bytes(b"y")
        self.during_pre_dump()

    async def checkpoint(self, target: Any, images: ImageDir) -> None:
        self.dumping.set()
        await self.go_on.wait()
        self.held.append(FakeHeld())
        images.held = self.held[-1]  # type: ignore[assignment]
        (images.images / "core-1.img").write_bytes(b"x")
        images.seal()
        if self.dump and (error := self.dump.pop(0)):
            raise error

    def plan(self, target: Any, images: ImageDir, stdio: Any) -> Any:
        if self.plan_error:
            raise self.plan_error
        self.plans.append(FakePlan(self.name))
        return self.plans[-1]

    def fit(self, target: Any, images: ImageDir) -> None:
        self.fitted += 1

    async def finish(self, target: Any, images: ImageDir, pid: int) -> int:
        self.finishing.set()
        try:
            await self.finish_go_on.wait()
        except asyncio.CancelledError:
            self.aborted.append(pid)
            raise
        end = self.ends.pop(0) if self.ends else 4242
        if isinstance(end, Exception):
            raise end
        return end

    async def abort(self, target: Any, images: ImageDir, pid: int) -> None:
        self.aborted.append(pid)


class FakeGroup:
    """Fires like the native one: at once, the news comes through the event loop."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self.on_event = on_event
        self.calls: list[str] = []
        self.plan: FakePlan | None = None
        self.fired: list[FakePlan] = []
        self.fire_errno: list[int] = []
        self.held = 0
        self.closed = False
        self.kept: tuple[int, ...] = ()
        self.last_ns = self.undecided_ns = 0
        self.cause = Cause.CONNECTION

    def _fire(self, cause: Cause | None = None) -> None:
        assert self.plan is not None
        plan, self.plan = self.plan, None
        self.fired.append(plan)
        pid = 1000 + len(self.fired)
        event = Event(EventKind.FIRED, 1, pid, 0, cause or self.cause)
        if self.fire_errno:
            event = Event(EventKind.FIRE_FAILED, 1, 0, 0, self.fire_errno.pop(0))
        asyncio.get_running_loop().call_soon(self.on_event, event)

    def connection(self) -> None:
        """A client comes."""
        self.held += 1
        if self.plan is not None:
            self._fire()

    def hold(self) -> None:
        self.calls.append("hold")

    def arm(self, plan: Any) -> bool:
        self.calls.append("arm")
        self.plan = plan
        if self.held:
            self._fire()
            return True
        return False

    def wake(self) -> bool:
        self.calls.append("wake")
        if self.plan is None:
            return False
        self._fire(Cause.REQUEST)
        return True

    def disarm(self) -> bool:
        self.calls.append("disarm")
        taken, self.plan = self.plan is not None, None
        return taken

    def awake(self) -> None:
        self.calls.append("awake")
        self.held = 0

    def keep(self, fds: Sequence[int]) -> None:
        self.kept = tuple(fds)

    def drop(self) -> None:
        self.calls.append("drop")
        self.held = 0

    def close(self) -> None:
        self.closed = True

    def last_activity_ns(self) -> int:
        return self.last_ns

    def last_undecided_ns(self) -> int:
        return self.undecided_ns


class FakeReaper:
    def __init__(self) -> None:
        self.held = 0

    @contextlib.contextmanager
    def command(self) -> Iterator[None]:
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1


class FakeContainer:
    """Runs as this test's own process."""

    def __init__(self, pid: int, settings: Settings, path: Path) -> None:
        self.id = "c1"
        self.settings = settings
        self.bundle = SimpleNamespace(path=path, root=path, cgroups_path="/zp-test/c1")
        self.reaper = FakeReaper()
        self.lock = asyncio.Lock()
        self.init = Init("c1", None, asyncio.get_running_loop())  # type: ignore[arg-type]
        self.init.runs_as(pid)
        self.state = State.RUNNING
        self.exit: Exit | None = None
        self.reports: list[tuple[Outcome, str]] = []
        self.on_end: Callable[[], None] = lambda: None

    def stdio_for_restore(self) -> tuple[int, int, int]:
        return (-1, -1, -1)

    def move(self, verb: Verb) -> None:
        self.state = move(self.state, verb, self.id)

    def adopt(self, pid: int) -> None:
        self.init.runs_as(pid)

    def report(self, outcome: Outcome, duration_ns: int = 0, log: str = "") -> None:
        self.reports.append((outcome, log))

    def publish_exit(self, exit: Exit) -> None:
        assert self.exit is None
        self.exit = exit
        self.state = move(self.state, Verb.EXIT, self.id)
        self.on_end()


def store_below(path: Path) -> Callable[[], ImageStore]:
    return lambda: ImageStore.open(str(path / "i"), "ns.c1")
