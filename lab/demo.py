"""`make demo`: an app that sleeps, is gone from memory, and wakes with its memory intact.

Runs the stateful app and nginx under zeropod on a node made for it, and shows what happens as it
happens. ``--keep`` leaves the node running and says what to try.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from contextlib import ExitStack
from threading import Event

import grpc

from lab import node as lab_node
from lab import paths, processes, show
from lab.container_images import NGINX, STATEFUL, Image
from lab.cri import ContainerSpec, PodSpec
from lab.node import Node
from lab.pods import Container, Pod
from lab.steps import LabError

IDLE = "1s"
WAKES = 20
COLD_STARTS = 5
_REST_S = 0.1
"""Between falling asleep and the next request, so that a wake-up is not a caught-up sleep."""


class Screen:
    """What the demo prints, within the terminal's width, coloured only where it is a terminal."""

    def __init__(self) -> None:
        self.width = min(shutil.get_terminal_size((80, 24)).columns, 100)
        self._bold, self._dim, self._plain = (
            ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")
        )
        self._begin_ns = time.monotonic_ns()

    def title(self, text: str) -> None:
        print(f"\n{self._bold}{text}{self._plain}", flush=True)

    def line(self, text: str) -> None:
        """An event, with the seconds since the demo began."""
        seconds = (time.monotonic_ns() - self._begin_ns) / 1e9
        print(f"{self._dim}{seconds:6.1f} s{self._plain}  {text}", flush=True)

    def plain(self, text: str = "") -> None:
        print(text, flush=True)


def _run_pod(screen: Screen, node: Node, image: Image, handler: str) -> Pod:
    annotations = {"zeropod.ctrox.dev/scaledown-duration": IDLE}
    spec = PodSpec(
        f"demo-{image.name}", handler, "demo", annotations, cgroup_parent=node.cgroup_parent
    )
    pod = Pod(node, spec)
    pod.add(ContainerSpec(image.name, image.reference))
    screen.title(f"{image.name} in a pod with runtime handler {handler}")
    screen.line(f"runs at {' and '.join(pod.addresses)}, sleeps when idle for {IDLE}")
    return pod


def _memory_survives(screen: Screen, node: Node, handler: str) -> Pod:
    """Count to three, sleep, and get the fourth answer from the same memory."""
    pod = _run_pod(screen, node, STATEFUL, handler)
    pod.wait_for_port(8080)
    (app,) = pod.containers
    boot_id = ""
    for _ in range(3):
        answer = pod.get()
        boot_id = str(answer["boot_id"])
        screen.line(f"GET http://{pod.address}:8080/ → count {answer['count']}, boot id {boot_id}")
    screen.line(f"awake: {_footprint(app)}; nobody asks now …")
    app.wait_asleep()
    Event().wait(_REST_S)
    screen.line(f"asleep: {_footprint(app)}, {show.size(_images_size(node))} on disk")
    reply = pod.request("/")
    answer = reply.json()
    screen.line(
        f"GET http://{pod.address}:8080/ → count {answer['count']}, boot id {answer['boot_id']}"
    )
    screen.line(f"first byte after {show.milliseconds(reply.first_byte_ns)}")
    if (answer["count"], answer["boot_id"]) != (4, boot_id):
        raise LabError("the app came back without its memory: this must never happen")
    screen.line("the same memory as before the sleep: it counted on")
    return pod


def _footprint(container: Container) -> str:
    """What the container's processes take now, as the kernel counts it."""
    pids = container.live_pids()
    memory = sum(processes.proportional_bytes(pid) for pid in pids)
    number = "1 process" if len(pids) == 1 else f"{len(pids) or 'no'} processes"
    return f"{number}, {show.size(memory)} of memory"


def _images_size(node: Node) -> int:
    """Bytes on disk of all checkpoint images of the node."""
    files = node.path("/var/lib/zeropod").rglob("*")
    return sum(path.lstat().st_blocks * 512 for path in files)


def _wake_ups(screen: Screen, pod: Pod) -> list[int]:
    """Let nginx sleep and wake again and again. Returns nanoseconds to the first byte."""
    pod.wait_for_port(80)
    screen.line(f"{WAKES} wake-ups, time from the first packet to the first byte:")
    (container,) = pod.containers
    times: list[int] = []
    for number in range(1, WAKES + 1):
        container.wait_asleep()
        Event().wait(_REST_S)
        times.append(_answered(pod))
        longest = max(100e6, *times)
        room = max(screen.width - 24, 8)
        bar = show.bar(times[-1], longest, room)
        screen.plain(f"{number:8} {show.milliseconds(times[-1]):>11}  {bar}")
    return times


def _answered(pod: Pod) -> int:
    reply = pod.request("/", port=80)
    if reply.status != 200:
        raise LabError(f"nginx answered {reply.status}")
    return reply.first_byte_ns


def _cold_starts(pod: Pod) -> list[int]:
    """Start the same container from nothing in the same pod, as a restart would."""
    times: list[int] = []
    for attempt in range(1, COLD_STARTS + 1):
        old = pod.containers.pop()
        old.stop(0)
        old.remove()
        begin_ns = time.monotonic_ns()
        pod.add(ContainerSpec(NGINX.name, NGINX.reference, attempt=attempt))
        pod.wait_for_port(80)
        _answered(pod)
        times.append(time.monotonic_ns() - begin_ns)
    return times


def _compare(screen: Screen, wakes: list[int], awake: list[int], cold: list[int]) -> None:
    screen.title("Side by side")
    rows = [
        (f"{name} {label} (n={len(times)})", show.percentile(times, share))
        for name, times in (("awake", awake), ("wake-up", wakes), ("cold start", cold))
        for label, share in (("p50", 0.5), ("p90", 0.9))
    ]
    for text in show.chart(rows, screen.width):
        screen.plain(text)


def _try_it(screen: Screen, pods: list[Pod]) -> None:
    app, nginx = pods
    screen.title("The node goes on. `make lab-shell` opens a shell in it, where you can try:")
    rows = (
        (f"curl http://{app.address}:8080/", "wakes the app, which counts on"),
        (f"curl 'http://[{app.addresses[1]}]:8080/peek'", "its state, without counting"),
        (f"curl -iA kube-probe/1.33 http://{nginx.address}/", "a probe: answered, wakes nothing"),
        ("ctr tasks ls", "RUNNING, asleep or not"),
        ("ls -R /var/lib/zeropod", "the images of what sleeps"),
    )
    width = max(len(command) for command, _ in rows)
    for command, meaning in rows:
        screen.plain(f"  {command:{width}}  # {meaning}")
    screen.plain("\n`.venv/bin/python -m lab down` ends it.")


def play(node: Node, screen: Screen, handler: str) -> list[Pod]:
    """All scenes. Returns the pods, which are still there."""
    try:
        app = _memory_survives(screen, node, handler)
        nginx = _run_pod(screen, node, NGINX, handler)
        wakes = _wake_ups(screen, nginx)
        awake = [_answered(nginx) for _ in range(WAKES)]
        _compare(screen, wakes, awake, _cold_starts(nginx))
    except (OSError, AssertionError, grpc.RpcError) as error:
        raise LabError(_explain(error)) from error
    return [app, nginx]


def _explain(error: Exception) -> str:
    """What went wrong, with what containerd and the shims said last."""
    detail = error.details() if isinstance(error, grpc.Call) else f"{type(error).__name__}: {error}"
    log = paths.NODE / "containerd.log"
    lines = log.read_text(errors="replace").splitlines()
    said = [line for line in lines if "level=info" not in line and "level=debug" not in line]
    return "\n".join([f"the demo stopped: {detail}", f"the last words in {log}:", *said[-8:]])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the node running")
    parser.add_argument("--handler", default="zeropod", help="CRI runtime handler")
    arguments = parser.parse_args()
    screen = Screen()
    try:
        screen.title("zeropod: containers that sleep")
        lab_node.build()
        with ExitStack() as at_end:
            node = Node.start("make demo")
            at_end.callback(node.stop)
            pods = play(node, screen, arguments.handler)
            if arguments.keep:
                node.keep()
                at_end.pop_all()
                _try_it(screen, pods)
                return 0
            for pod in pods:
                pod.remove()
            screen.title("All pods are removed, the node ends")
        screen.plain("README.md says what this is for, docs/architecture.md how it works.")
        screen.plain("`make demo KEEP=1` leaves it running for you to try.")
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
