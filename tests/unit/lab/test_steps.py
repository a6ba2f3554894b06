"""Build steps: what is interrupted is made again, what is complete is never touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.steps import LabError, fingerprint, is_made, making, run, write_file


def test_a_step_that_ends_well_is_made(tmp_path: Path) -> None:
    target = tmp_path / "tools"
    assert not is_made(target, "1")
    with making(target, "1") as part:
        (part / "runc").write_text("binary")
        assert not target.exists()
    assert is_made(target, "1")
    assert (target / "runc").read_text() == "binary"
    assert [path.name for path in tmp_path.iterdir()] == ["tools"]


def test_another_fingerprint_makes_it_anew(tmp_path: Path) -> None:
    target = tmp_path / "tools"
    with making(target, "1") as part:
        (part / "old").touch()
    assert not is_made(target, "2")
    with making(target, "2") as part:
        (part / "new").touch()
    assert {path.name for path in target.iterdir()} == {"new", "stamp.json"}


def test_an_interrupted_step_leaves_the_last_result_and_is_made_again(tmp_path: Path) -> None:
    target = tmp_path / "tools"
    with making(target, "1") as part:
        (part / "good").touch()

    def interrupted() -> None:
        with making(target, "2") as part:
            (part / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert is_made(target, "1")
    with making(target, "2") as part:
        assert not list(part.iterdir())
    assert is_made(target, "2")


@pytest.mark.parametrize("text", ["", "{", "[]", '"made_from"', '{"made_from": "2"}'])
def test_a_broken_stamp_is_no_stamp(tmp_path: Path, text: str) -> None:
    (tmp_path / "stamp.json").write_text(text)
    assert not is_made(tmp_path, "1")


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_only_equal_inputs_have_equal_fingerprints(one: list[bytes], other: list[bytes]) -> None:
    assert (fingerprint(one) == fingerprint(other)) == (one == other)


def test_a_failed_command_says_what_it_said() -> None:
    with pytest.raises(LabError, match=r"sh -c .*: exit 3\nno such thing"):
        run(["sh", "-c", "echo no such thing >&2; exit 3"])


def test_a_missing_program_names_the_way_to_install_it() -> None:
    with pytest.raises(LabError, match=r"no-such-program: not found; lab/install-host-packages"):
        run(["no-such-program"])


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    write_file(tmp_path / "f", "one", 0o755)
    write_file(tmp_path / "f", "two", 0o600)
    assert (tmp_path / "f").read_text() == "two"
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
