"""What ends with a container's init."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.criu.conftest import MakeBox
from zeropod.container.events import Exited, Stdio

_EXEC = {"args": ["/bin/sleep", "60"], "cwd": "/", "env": [], "user": {"uid": 0, "gid": 0}}


@pytest.mark.parametrize("pid_namespace", [True, False])
async def test_execs_end_with_init_and_are_told_first(
    make_box: MakeBox, pid_namespace: bool
) -> None:
    """With a pid namespace of its own by the kernel's hand, without one by ours."""
    box = await make_box(scaledown_duration="0", pid_namespace=pid_namespace)
    for id in ("e1", "e2"):
        await box.container.add_exec(id, json.dumps(_EXEC).encode(), Stdio())
    pids = [await box.container.start(id) for id in ("e1", "e2")]
    await box.container.kill(9)
    assert (await box.container.wait()).status == 137
    assert [(await box.container.wait(id)).status for id in ("e1", "e2")] == [137, 137]
    told = [event.process_id for event in box.events if isinstance(event, Exited)]
    assert sorted(told[:2]) == ["e1", "e2"] and told[2:] == ["c1"]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
