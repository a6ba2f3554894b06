"""The benchmark `awake` takes an activator's programs off an interface and puts them back."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from lab.programs import Hooks
from tests.netns.conftest import POD_V4, PORT, Pod

_ETH0 = 2


def test_programs_see_packets_only_while_they_are_there(pod: Pod) -> None:
    group = pod.group(probe_detection=False)
    netns = Path(f"/proc/self/fd/{pod.here.fd}")

    def seen() -> bool:
        before_ns = pod.activator.last_activity_ns(group)
        pod.client.connect(POD_V4).close()
        return pod.activator.last_activity_ns(group) > before_ns

    with pod.here.listen(PORT):
        assert seen()
        with closing(Hooks(os.getpid(), netns, _ETH0)) as hooks:
            assert not seen()
            for _ in range(2):
                hooks.put()
                hooks.put()
                assert seen()
                hooks.take()
                hooks.take()
                assert not seen()
            hooks.put()
        assert not seen()
