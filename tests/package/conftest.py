"""A wheel built from a copy of the tree, and installed twice.

`installed` is what users get; `stubbed` is the same with containers taken out, so that launcher and
zygote can be tried alone and fast. Dependencies come from the environment that runs the tests.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.package.installation import build, copy_tree, install
from tests.package.node import Node, node


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="session")
def wheel(tree: Path) -> Path:
    return build(tree, "bdist_wheel")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    return install(tmp_path_factory.mktemp("installed") / "env", wheel)


@pytest.fixture(scope="session")
def stubbed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    prefix = tmp_path_factory.mktemp("stubbed") / "env"
    bin = install(prefix, wheel)
    (site,) = prefix.glob("lib/python3*/site-packages")
    shutil.copy(Path(__file__).with_name("stub.py"), site / "zeropod_stub.py")
    (site / "zeropod_stub.pth").write_text("import zeropod_stub\n")
    return bin


@pytest.fixture
def stub_node(stubbed: Path, tmp_path: Path) -> Iterator[Node]:
    with node(stubbed, tmp_path / "bundles") as made:
        yield made


@pytest.fixture
def real_node(installed: Path, tmp_path: Path) -> Iterator[Node]:
    with node(installed, tmp_path / "bundles") as made:
        yield made
