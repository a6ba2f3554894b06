"""Which container is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from zeropod.api.inspect_pb2 import Container
from zeropod.command.choose import choose, title
from zeropod.command.shims import Found
from zeropod.errors import NotFound


def _found(
    id: str, name: str = "", pod: str = "", namespace: str = "", of: str = "k8s.io"
) -> Found:
    one = Container(id=id, name=name, pod_name=pod, pod_namespace=namespace, namespace=of)
    return Found(Path("/s"), one)


ALL = [
    _found("abc1" * 16, "app", "web-1", "default"),
    _found("abc2" * 16, "side", "web-1", "default"),
    _found("abc3" * 16, "app", "web-1", "other"),
    _found("web", "", ""),
    _found("db", "postgres", "db-0", "default"),
]


@pytest.mark.parametrize(
    ("wanted", "number"),
    [
        *(("abc1" * 16, 0), ("abc2", 1), ("side", 1), ("web-1/side", 1)),
        *(("default/web-1/app", 0), ("other/web-1/app", 2), ("postgres", 4), ("db-0", 4)),
        ("web", 3),  # an id, though it begins other names
        ("db", 4),
    ],
)
def test_who_is_meant(wanted: str, number: int) -> None:
    assert choose(ALL, wanted) is ALL[number]


@pytest.mark.parametrize("wanted", ["app", "web-1", "web-1/app", "abc"])
def test_several_are_named(wanted: str) -> None:
    with pytest.raises(
        NotFound, match=rf"^'{wanted}' may be each of .*: say more of it$"
    ) as caught:
        choose(ALL, wanted)
    assert "default/web-1/app (k8s.io/abc1abc1abc1)" in str(caught.value)
    assert "postgres" not in str(caught.value)


def test_many_are_not_all_named() -> None:
    many = [_found(f"a{number}") for number in range(9)]
    with pytest.raises(NotFound, match=r"a4 \(k8s.io/a4\), …: say more"):
        choose(many, "a")


def test_the_same_id_in_two_namespaces() -> None:
    both = [_found("web", of="default"), _found("web", of="ci")]
    with pytest.raises(NotFound, match=r"web \(default/web\), web \(ci/web\): say more"):
        choose(both, "web")
    assert choose(both, "ci/web") is both[1] is choose(both, "ci/w")


@pytest.mark.parametrize("wanted", ["", "nobody", "default/web-1", "abc1abc2"])
def test_nobody_is_meant(wanted: str) -> None:
    with pytest.raises(NotFound, match="`zeropod ps` shows all"):
        choose(ALL, wanted)


def test_titles() -> None:
    assert [title(one.container) for one in ALL[:1] + ALL[3:4]] == ["default/web-1/app", "web"]
    assert title(_found("f" * 64).container) == "f" * 12
