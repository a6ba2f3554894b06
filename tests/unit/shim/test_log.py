"""Log lines: their form, and that nobody's absence is felt."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from zeropod.shim import log


def test_form() -> None:
    line = log.format_line(1700000000.25, "info", 'he said "no"', {"id": "a-1"})
    assert line == (
        b'time="2023-11-14T22:13:20.250000000Z" level=info msg="he said \\"no\\"" '
        b"id=a-1 runtime=zeropod\n"
    )


def test_a_line_is_one_line_and_bounded() -> None:
    line = log.format_line(0, "info", "a\nb" * 5000, {})
    assert len(line) == 4096
    assert line.count(b"\n") == 1


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    os.mkfifo(tmp_path / "log")
    return str(tmp_path / "log")


def handler(descriptor: int) -> logging.Logger:
    logger = logging.Logger("test")
    logger.addHandler(log.FifoHandler(descriptor, id="a"))
    return logger


def test_a_reader_reads_and_a_traceback_is_a_field(fifo: str) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = log.open_fifo(fifo)
    try:
        raise ValueError("no")
    except ValueError:
        handler(writer).exception("it failed")
    text = os.read(reader, 65536)
    assert text.count(b"\n") == 1
    assert b'level=error msg="it failed" id=a trace="Traceback' in text
    os.close(reader)
    os.close(writer)


def test_without_a_reader_nothing_blocks_and_the_loss_is_told(fifo: str) -> None:
    writer = log.open_fifo(fifo)
    logger = handler(writer)
    for number in range(5000):
        logger.info("line %d", number)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    while True:
        try:
            os.read(reader, 65536)
        except BlockingIOError:
            break
    logger.info("after")
    text = os.read(reader, 65536).decode()
    assert "log lines were dropped" in text.splitlines()[0]
    assert "msg=after" in text.splitlines()[1]
    os.close(reader)
    os.close(writer)


def test_a_bundle_without_fifo_gets_devnull(tmp_path: Path) -> None:
    descriptor = log.open_fifo(str(tmp_path / "log"))
    handler(descriptor).info("x")
    assert str(Path(f"/proc/self/fd/{descriptor}").readlink()) == "/dev/null"
    os.close(descriptor)
