"""A Delete that took longer than its caller waited."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.task.conftest import Shim
from tests.unit.task.fake import EXIT, PID, FakeContainer
from zeropod.api import task_pb2 as pb
from zeropod.errors import Code, DeadlineExceeded
from zeropod.ttrpc import RemoteError

_CALL = ("delete", "")
_REQUEST = pb.DeleteRequest(id="c1")


async def _held_up(shim: Shim) -> FakeContainer:
    """A container whose Delete goes on, though the caller has left."""
    await shim.create()
    container = shim.maker["c1"]
    container.gate = asyncio.Event()
    with pytest.raises((RemoteError, DeadlineExceeded)):
        await shim.client.call(shim.service, "Delete", _REQUEST, pb.DeleteResponse, timeout_s=0.1)
    assert container.calls.count(_CALL) == 1
    return container


async def _delete(shim: Shim) -> pb.DeleteResponse:
    return await shim.call("Delete", _REQUEST, pb.DeleteResponse)


async def _refused(shim: Shim) -> Code:
    with pytest.raises(RemoteError) as caught:
        await _delete(shim)
    return Code(caught.value.status)


async def _turn(shim: Shim) -> None:
    """What was sent before has been received."""
    await shim.call("Connect", pb.ConnectRequest(id="other"), pb.ConnectResponse)


async def _done(shim: Shim, container: FakeContainer) -> None:
    assert container.gate
    container.gate.set()
    while len(shim.registry):
        await _turn(shim)


async def test_who_asks_again_meanwhile_gets_its_answer(shim: Shim) -> None:
    container = await _held_up(shim)
    again = asyncio.create_task(_delete(shim))
    await _turn(shim)
    assert container.gate
    container.gate.set()
    gone = await again
    assert (gone.pid, gone.exit_status) == (PID, EXIT.status)
    assert container.calls.count(_CALL) == 1


async def test_who_asks_again_afterwards_gets_its_answer_once(shim: Shim) -> None:
    container = await _held_up(shim)
    await _done(shim, container)
    gone = await _delete(shim)
    assert (gone.pid, gone.exit_status) == (PID, EXIT.status)
    assert gone.exited_at.ToNanoseconds() == EXIT.at_ns
    assert await _refused(shim) == Code.NOT_FOUND


async def test_a_new_container_of_the_name_has_an_answer_of_its_own(shim: Shim) -> None:
    container = await _held_up(shim)
    await _done(shim, container)
    await shim.create()
    await _delete(shim)
    assert shim.maker["c1"].calls.count(_CALL) == 1
    assert await _refused(shim) == Code.NOT_FOUND
