"""All sockets of a node are asked, and what is wrong with one of them keeps nobody waiting."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.command.conftest import Node
from zeropod.api.inspect_pb2 import Container
from zeropod.command import shims
from zeropod.command.shims import CannotAsk

Make = Callable[..., Container]


async def test_all_are_asked_and_sorted_by_name(node: Node, make_container: Make) -> None:
    node.add("a", make_container("2", pod_name="z"), make_container("1", pod_name="z"))
    node.add("b", make_container("3", pod_name="a"))
    (node.root / "notes.txt").write_text("no socket")
    answers = await shims.ask_all(node.root, 60)
    assert [one.container.id for one in answers.found] == ["3", "1", "2"]
    assert [one.path.stem for one in answers.found] == ["b", "a", "a"]
    assert not answers.troubles


async def test_a_dead_shim_is_named_and_is_no_failure(node: Node, make_container: Make) -> None:
    node.add("a", make_container())
    path = node.add_dead("b")
    answers = await shims.ask_all(node.root, 60)
    assert len(answers.found) == 1
    (trouble,) = answers.troubles
    assert trouble.harmless and str(trouble) == f"{path}: its shim is dead, skipped"


async def test_all_are_asked_at_once(node: Node, make_container: Make) -> None:
    """None of them answers before all are asked."""
    asked = asyncio.Barrier(20)
    for number in range(20):
        node.add(f"{number}", make_container(f"{number}")).before_list = asked.wait
    answers = await shims.ask_all(node.root, 30)
    assert len(answers.found) == 20 and not answers.troubles


async def test_one_that_hangs_is_named(node: Node, make_container: Make) -> None:
    node.add("a", make_container())
    path = node.add_hanging("h")
    answers = await shims.ask_all(node.root, 0.5)
    assert len(answers.found) == 1
    (trouble,) = answers.troubles
    assert trouble.path == path and not trouble.harmless
    assert trouble.text.startswith("no answer within 0.5 s: its shim hangs")


async def test_a_queue_that_is_full_is_bounded_too(node: Node) -> None:
    listening = node.listening("full", backlog=0)
    held = []
    try:
        with pytest.raises(BlockingIOError):
            for _ in range(10):
                made = socket.socket(socket.AF_UNIX)
                held.append(made)
                made.setblocking(False)
                made.connect(str(node.root / "full.sock"))
        answers = await shims.ask_all(node.root, 1)
        assert len(answers.troubles) == 1 and not answers.troubles[0].harmless
    finally:
        for made in (*held, listening):
            made.close()


async def test_a_shim_of_an_earlier_version(node: Node) -> None:
    node.serve("old", {"zeropod.shim.v1.Shim": {}})
    (trouble,) = (await shims.ask_all(node.root, 60)).troubles
    assert "earlier version" in trouble.text and not trouble.harmless


async def test_nothing_has_run_here_yet(tmp_path: Path) -> None:
    answers = await shims.ask_all(tmp_path / "missing", 60)
    assert answers == shims.Answers((), ())


async def test_a_root_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotAsk, match=f"^{tmp_path}/file: Not a directory$"):
        await shims.ask_all(tmp_path / "file", 60)
