"""Which container a user means: an id or the beginning of one, or its name, as `ps` shows it."""

from __future__ import annotations

from collections.abc import Sequence

from zeropod.api.inspect_pb2 import Container
from zeropod.command.shims import Found
from zeropod.errors import NotFound

_SHOWN = 5


def names(one: Container) -> tuple[str, ...]:
    """What it goes by besides its id; the longest form last."""
    if not one.pod_name:
        return (one.name,) if one.name else ()
    pod = one.pod_name
    return (one.name, pod, f"{pod}/{one.name}", f"{one.pod_namespace}/{pod}/{one.name}")


def title(one: Container) -> str:
    """How it is called to a person."""
    return names(one)[-1] if names(one) else one.id[:12]


def choose(found: Sequence[Found], wanted: str) -> Found:
    """The only one that ``wanted`` names; an id comes before a name, a whole one before a part.

    Also ``namespace/id``, and the beginning of it.

    Raises:
        NotFound: none, or several, which are named.
    """
    ways = (
        [one for one in found if wanted in (one.container.id, _whole(one.container))],
        [one for one in found if wanted in names(one.container)],
        [one for one in found if wanted and _begins(one.container, wanted)],
    )
    for those in ways:
        if len(those) == 1:
            return those[0]
        if those:
            several = ", ".join(_several(one.container) for one in those[:_SHOWN])
            more = ", …" if len(those) > _SHOWN else ""
            raise NotFound(f"{wanted!r} may be each of {several}{more}: say more of it")
    raise NotFound(f"there is no container {wanted!r}: `zeropod ps` shows all")


def _whole(one: Container) -> str:
    """An id is containerd's, which may have another of the same in another namespace."""
    return f"{one.namespace}/{one.id}"


def _begins(one: Container, wanted: str) -> bool:
    return one.id.startswith(wanted) or (
        wanted.startswith(f"{one.namespace}/") and _whole(one).startswith(wanted)
    )


def _several(one: Container) -> str:
    return f"{title(one)} ({_whole(one)[: len(one.namespace) + 13]})"
