"""What the benchmarks' command line takes and refuses."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import BENCHMARKS, arguments


def test_nothing_is_asked_for_by_default() -> None:
    given = arguments([])
    assert (given.names, given.rounds, given.pods, given.origins) == ([], None, None, None)


@pytest.mark.parametrize(
    ("origin", "origins"), [("node", ("node",)), ("pod", ("pod",)), ("both", ("node", "pod"))]
)
def test_origins_are_named(origin: str, origins: tuple[str, ...]) -> None:
    assert arguments(["wake", "--origin", origin]).origins == origins


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["sleep"], "unknown: sleep"),
        (["wake", "--rounds", "0"], "--rounds must be at least 1"),
        (["wake", "--origin", "moon"], "invalid choice: 'moon'"),
    ],
)
def test_what_cannot_be_is_refused(
    capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        arguments(argv)
    assert said in capsys.readouterr().err


def test_help_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        arguments(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line.endswith("]")} >= set(BENCHMARKS)
