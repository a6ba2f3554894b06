"""What the leak accounting takes for a node's: nothing that another process holds."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from lab import bpf as accounting
from lab import cgroups
from tests.netns import bpf
from tests.netns.conftest import Namespace
from tests.netns.test_group import VICTIM

if TYPE_CHECKING:
    import pytest


def _counted() -> set[bpf.Id]:
    return {bpf.Id(f"{key.kind}_id", key.id) for key in accounting.objects()}


def test_bpf_objects_have_an_owner(
    wire: tuple[Namespace, Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neighbour's are not counted, a node's are, and so are those that nobody holds any more."""
    here, _ = wire
    with subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(here.fd), "SPLICE", "clsact"],
        stdout=subprocess.PIPE,
        pass_fds=[here.fd],
    ) as holder:
        assert holder.stdout and holder.stdout.readline() == b"up\n"
        held = bpf.held_ids(holder.pid)
        assert held and not held & _counted()
        with monkeypatch.context() as patch:
            patch.setattr(cgroups, "processes", lambda: {holder.pid})
            counted = _counted()
        assert held <= counted
        holder.kill()
    maps = {id for id in held if id.kind == "map_id"}  # of filters, which outlive their maker
    assert maps and maps <= _counted()
