"""A websocket that wakes an app, and is open for longer than the app may be idle."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.pods import Pod

from . import websocket
from .conftest import MakePod

_OPEN_S = 60.0
_IDLE = {"scaledown-duration": "5s"}


def _lives(pod: Pod, before: dict[str, object]) -> None:
    """It says how long it has been open, and each time it is answered, until a minute is over."""
    (app,) = pod.containers
    app.wait_asleep()
    with pod.node.connect(pod.address, 8080) as made, made.makefile("rb") as stream:
        websocket.upgrade(made, stream, pod.address)
        pids, ticks, echoes, open_s = app.live_pids(), 0, 0, 0.0
        assert pids  # of the app, and perhaps of what restores it
        while open_s < _OPEN_S or echoes < ticks:
            opcode, payload = websocket.read(stream)
            assert opcode == websocket.TEXT, f"ended after {open_s} s"
            said = json.loads(payload)
            if "tick" in said:
                assert (said["tick"], said["boot_id"]) == (ticks, before["boot_id"])
                open_s = float(said["open_s"])
                websocket.write(made, websocket.TEXT, b"%d" % ticks, masked=True)
                ticks += 1
            else:
                echoes += 1
                assert said == {"echo": echoes - 1, "count": before["count"] + echoes}  # type: ignore[operator]
        now = app.live_pids()
        assert now and now <= pids, "it has slept meanwhile"
        websocket.write(made, websocket.CLOSE, b"\x03\xe8", masked=True)
        while (last := websocket.read(stream))[0] == websocket.TEXT:
            pass
        assert last == (websocket.CLOSE, b"\x03\xe8")
    app.wait_asleep()
    found = pod.get()
    assert (found["boot_id"], found["count"]) == (before["boot_id"], before["count"] + echoes + 1)  # type: ignore[operator]


def test_a_websocket_lives_a_minute(no_leaks: None, make_pod: MakePod) -> None:
    """Parked and spliced, both at once, for a minute is a minute."""
    mounts = {"/app/ws": Path(websocket.__file__).parent}
    command = ["python3", "-u", "/app/ws/websocket.py"]
    pods = [
        make_pod("stateful", {**_IDLE, "activation": way}, command=command, mounts=mounts)
        for way in ("park", "splice")
    ]
    with ThreadPoolExecutor(len(pods)) as pool:
        for done in [pool.submit(_lives, pod, pod.get()) for pod in pods]:
            done.result()
