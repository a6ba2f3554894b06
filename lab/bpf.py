"""The BPF objects of a node: those of the machine that nobody outside of the node holds.

An object has no name of its node. Whoever holds it is a process with a descriptor of it, or of a
link or program that it belongs to; so what processes outside hold is theirs. What nobody holds (it
is attached, or pinned) is counted: a leak has no process any more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lab import cgroups, waiting
from lab.steps import LabError, run

_OF_CGROUPS = ("cgroup_device",)
"""They go with their cgroup, and cgroups are counted."""
_KEYS = {"link_id": "link", "prog_id": "prog", "map_id": "map"}


class Object(NamedTuple):
    kind: str
    id: int


def objects() -> dict[Object, str]:
    """Each with its name. What comes or goes meanwhile is none of them."""
    listed = _listed()
    others, still = _of_others(listed), _listed()
    return {
        key: str(item.get("name", item.get("type", "")))
        for key, item in listed.items()
        if key not in others and key in still
    }


def shown(kind: str) -> list[dict[str, Any]]:
    """Every link, prog or map of the machine, as bpftool shows it."""
    return waiting.until(f"list of {kind}s", partial(_shown, kind), 30)


def _listed() -> dict[Object, dict[str, Any]]:
    """Links before programs before maps: what belongs to one comes after it."""
    return {
        Object(kind, item["id"]): item
        for kind in _KEYS.values()
        for item in shown(kind)
        if item.get("type") not in _OF_CGROUPS
    }


def _shown(kind: str) -> list[dict[str, Any]] | None:
    """None where bpftool gave up: at an object that came or went meanwhile."""
    try:
        found: list[dict[str, Any]] = json.loads(run(["bpftool", "--json", kind, "show"]) or "[]")
    except LabError as error:
        if "can't get" in str(error):
            return None
        raise
    return found


def _of_others(listed: Mapping[Object, Mapping[str, Any]]) -> set[Object]:
    own = cgroups.processes()
    folders = (path for path in Path("/proc").iterdir() if path.name.isdecimal())
    found = {held for path in folders if int(path.name) not in own for held in _held(path)}
    for key, item in listed.items():
        if key in found:
            if key.kind == "link" and "prog_id" in item:
                found.add(Object("prog", item["prog_id"]))
            found |= {Object("map", id) for id in item.get("map_ids", ())}
    return found


def _held(process: Path) -> Iterator[Object]:
    with suppress(OSError):  # it ends
        for link in (process / "fd").iterdir():
            with suppress(OSError):
                if not str(link.readlink()).startswith("anon_inode:bpf"):
                    continue
                for line in (process / "fdinfo" / link.name).read_text().splitlines():
                    key, _, value = line.partition(":")
                    if key in _KEYS:
                        yield Object(_KEYS[key], int(value))
