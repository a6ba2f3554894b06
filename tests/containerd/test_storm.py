"""A short storm (`make storm` is a long one): openers whenever it suits a pod least."""

from __future__ import annotations

import random
from pathlib import Path

from lab.node import Node
from lab.storm import Storm

from .conftest import MakePod

_PODS, _CYCLES = 5, 60


def test_every_opener_is_answered_by_the_same_memory(
    no_leaks: None, node: Node, make_pod: MakePod
) -> None:
    (inside, *_) = make_pod("stateful", {"scaledown-duration": "0"}).containers[0].live_pids()
    pods = [make_pod("stateful", {"scaledown-duration": "300ms"}) for _ in range(_PODS)]
    places = {"node": node.pid, "pod": inside}
    origins = {name: Path(f"/proc/{pid}/ns/net") for name, pid in places.items()}
    seed = random.randrange(2**32)
    storm = Storm(node, origins, seed)
    storm.run(pods, _CYCLES)
    print("\n".join(storm.found.lines()))
    assert not storm.found.failures, f"seed {seed}"
    assert storm.found.wakes >= _CYCLES
