"""The commands themselves: each returns the exit code, 0 or 1 for what has failed.

What is asked for goes to stdout, everything else to stderr. `--watch` ends with Ctrl-C or when
nobody reads any more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, Final

from zeropod.api import inspect_pb2 as pb
from zeropod.command import shims, show
from zeropod.command.choose import choose, title
from zeropod.command.shims import Answers, Found
from zeropod.command.text import milliseconds, printable, size
from zeropod.errors import NotFound, ZeropodError

_HOME: Final = "\033[H\033[J"
_ASK_S: Final = 5.0

Look = Callable[[], Coroutine[Any, Any, tuple[list[str], Any, Answers]]]
"""Lines for a person, a value for a program, and what is wrong with sockets."""


def ps(options: argparse.Namespace) -> int:
    async def look() -> tuple[list[str], Any, Answers]:
        answers = await shims.ask_all(options.root, options.timeout)
        found = [one.container for one in answers.found]
        lines = show.containers(found, time.time_ns(), _width())
        return lines, [show.plain(one) for one in found], answers

    return _shown(look, options)


def inspect(options: argparse.Namespace) -> int:
    async def look() -> tuple[list[str], Any, Answers]:
        answers = await shims.ask_all(options.root, options.timeout)
        try:
            one = choose(answers.found, options.container)
        except NotFound:
            _complain(answers)
            raise
        request = pb.ContainerRequest(id=one.container.id)
        found = await shims.call(one.path, "Get", request, pb.Details, options.timeout)
        return show.details(found, time.time_ns()), show.plain(found), answers

    return _shown(look, options)


def wake(options: argparse.Namespace) -> int:
    async def do(one: Found) -> str:
        now = await _ask(one, "Wake", pb.ContainerRequest(id=one.container.id), options)
        if now.state != "RUNNING":
            return f"was woken, and is {now.state} again"
        if now.wakes == one.container.wakes:
            return "is awake"
        return f"woken in {milliseconds(now.last_wake_duration_ns)}"

    return asyncio.run(_each(options, do))


def sleep(options: argparse.Namespace) -> int:
    async def do(one: Found) -> str:
        request = pb.SleepRequest(id=one.container.id, force=options.force)
        now = await _ask(one, "Sleep", request, options)
        if now.state != "SCALED_DOWN":
            return f"slept, and is {now.state} again"
        if now.sleeps == one.container.sleeps:
            return "is asleep"
        return f"asleep after {milliseconds(now.last_sleep_duration_ns)}, {size(now.image_bytes)}"

    return asyncio.run(_each(options, do))


async def _ask(
    one: Found, method: str, request: pb.ContainerRequest | pb.SleepRequest, options: Any
) -> pb.Container:
    """Raises ZeropodError, whose text names the container."""
    try:
        return await shims.call(one.path, method, request, pb.Container, options.timeout)
    except ZeropodError as error:
        text = f"{title(one.container)} cannot {method.lower()}: {error}"
        raise ZeropodError(text) from error


async def _each(options: argparse.Namespace, do: Callable[[Found], Awaitable[str]]) -> int:
    """Those that are named, one after another; one that fails keeps no other from its turn."""
    answers = await shims.ask_all(options.root, min(options.timeout, _ASK_S))
    code = _complain(answers)
    for wanted in options.containers:
        try:
            one = choose(answers.found, wanted)
            line = f"{title(one.container)}: {await do(one)}"
            with unread():
                print(printable(line), flush=True)
        except ZeropodError as error:
            complain(str(error))
            code = 1
    return code


def _shown(look: Look, options: argparse.Namespace) -> int:
    if not options.watch:
        lines, value, answers = asyncio.run(look())
        code = _complain(answers)
        _print(lines, value, options)
        return code
    try:
        while True:
            lines, value, answers = asyncio.run(look())
            if sys.stdout.isatty() and not options.json:
                print(_HOME, end="", flush=True)
            _complain(answers)
            _print(lines, value, options)
            time.sleep(options.watch)
    except KeyboardInterrupt:
        return 0


def _print(lines: Sequence[str], value: Any, options: argparse.Namespace) -> None:
    if options.json:
        indent = None if options.watch else 2
        print(json.dumps(value, indent=indent), flush=True)
    else:
        print("\n".join(map(printable, lines)), flush=True)


def _complain(answers: Answers) -> int:
    """Say what is wrong with sockets. Returns 1 where something is missing because of it."""
    for trouble in answers.troubles:
        complain(str(trouble))
    return int(any(not trouble.harmless for trouble in answers.troubles))


def complain(text: str) -> None:
    print(f"zeropod: {printable(text)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def unread() -> Iterator[None]:
    """Whoever read has seen enough: nothing more is said, also not at the interpreter's end."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
