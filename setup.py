"""Builds what pyproject.toml cannot say: the extensions, the BPF object and the launcher.

`build_native` runs before everything else: clang makes the BPF object, cc the launcher, which
enters the wheel as a script and so lands in the environment's ``bin/``. Whatever is missing ends
the build with one sentence that names the Debian package to install.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar, NoReturn

from setuptools import Command, Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

from distutils.command.build_scripts import build_scripts  # isort: skip  (setuptools brings it)

ROOT = Path(__file__).parent
VERSION = (ROOT / "VERSION").read_text().strip()
LAUNCHER = "containerd-shim-zeropod-v2"
BPF_SOURCE = Path("bpf/redirector.bpf.c")
BPF_OBJECT = Path("zeropod/_fastpath/redirector.bpf.o")
TAR = Path("zeropod/_fastpath/bin/tar")
CFLAGS = ["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]


def stop(sentence: str) -> NoReturn:
    sys.exit(f"zeropod: {sentence}")


def build_id() -> str:
    """A hash over all sources: equal sources share a zygote, a changed one never meets an old."""
    digest = hashlib.sha256()
    for folder in ("zeropod", "csrc", "bpf"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".pyx", ".pxd", ".c", ".h") and path.name != "_build_info.py":
                if path.suffix == ".c" and path.parent.name == "_fastpath":
                    continue
                digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    digest.update(VERSION.encode())
    return digest.hexdigest()[:16]


def find_clang() -> str:
    candidates = [os.environ.get("CLANG", ""), "clang"]
    candidates += [f"clang-{version}" for version in range(22, 10, -1)]
    for name in candidates:
        if name and shutil.which(name):
            return name
    stop("clang is missing and the BPF object needs it: apt-get install clang-14")


def check_host() -> None:
    include = Path("/usr/include")
    if not (include / "bpf/bpf.h").exists():
        stop("the libbpf headers are missing: apt-get install libbpf-dev")
    if not Path("/sys/kernel/btf/vmlinux").exists() and "ZEROPOD_NO_KERNEL_BTF" not in os.environ:
        stop(
            "this kernel has no BTF (/sys/kernel/btf/vmlinux), which CO-RE programs need: "
            "apt-get install linux-image-amd64 and boot it, or set ZEROPOD_NO_KERNEL_BTF=1 "
            "to build for another machine"
        )


def run(argv: list[str]) -> None:
    print(shlex.join(argv))
    try:
        subprocess.run(argv, cwd=ROOT, check=True)
    except FileNotFoundError:
        stop(f"{argv[0]} is missing: apt-get install gcc libc6-dev")
    except subprocess.CalledProcessError as error:
        stop(f"{argv[0]} ended with {error.returncode}: see its messages above")


class BuildNative(Command):
    """The BPF object and the launcher."""

    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.build_temp: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options(
            "build", ("build_lib", "build_lib"), ("build_temp", "build_temp")
        )

    def run(self) -> None:
        assert self.build_lib and self.build_temp
        check_host()
        self.bpf(Path(self.build_lib) / BPF_OBJECT)
        self.launcher(Path(self.build_temp) / LAUNCHER)
        self.tar(Path(self.build_lib) / TAR)
        info = Path(self.build_lib) / "zeropod/_build_info.py"
        info.parent.mkdir(parents=True, exist_ok=True)
        info.write_text(build_info())

    @staticmethod
    def bpf(target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        arch = {"x86_64": "x86", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
        triplet = Path("/usr/include") / f"{os.uname().machine}-linux-gnu"
        run(
            [
                find_clang(),
                "-target",
                "bpf",
                f"-D__TARGET_ARCH_{arch}",
                "-O2",
                "-g",
                "-Wall",
                "-Wextra",
                "-Werror",
                f"-I{triplet}",
                "-Ibpf",
                "-c",
                str(BPF_SOURCE),
                "-o",
                str(target),
            ]
        )
        strip = shutil.which("llvm-strip") or shutil.which("llvm-strip-14")
        if strip:
            run([strip, "-g", str(target)])

    @staticmethod
    def launcher(target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        sources = sorted(
            str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("launcher*.c")
        )
        run(
            [
                os.environ.get("CC", "cc"),
                *CFLAGS,
                "-s",
                f'-DZP_VERSION="{VERSION}"',
                f'-DZP_BUILD_ID="{build_id()}"',
                *sources,
                "-o",
                str(target),
            ]
        )

    @staticmethod
    def tar(target: Path) -> None:
        """The tar that CRIU finds first; static, for its start is what counts."""
        target.parent.mkdir(parents=True, exist_ok=True)
        sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc/tar").glob("*.c"))
        cc = os.environ.get("CC", "cc")
        run([cc, *CFLAGS, "-static", "-s", *sources, "-o", str(target)])


def build_info() -> str:
    return f'"""Made by the build."""\n\nVERSION = "{VERSION}"\nBUILD_ID = "{build_id()}"\n'


class Build(build):
    sub_commands: ClassVar = [("build_native", None), *build.sub_commands]


class BuildExt(build_ext):
    """In place (for development) the BPF object and the build information come along."""

    def run(self) -> None:
        check_host()
        super().run()
        if self.inplace:
            BuildNative.bpf(ROOT / BPF_OBJECT)
            BuildNative.launcher(ROOT / "build" / LAUNCHER)
            BuildNative.tar(ROOT / TAR)
            (ROOT / "zeropod/_build_info.py").write_text(build_info())


class BuildPy(build_py):
    """Takes only what is source: no generated C, no object of an in-place build."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules = super().find_package_modules(package, package_dir)
        return [module for module in modules if module[1] != "_build_info"]

    def find_data_files(self, package: str, src_dir: str) -> list[str]:
        found = super().find_data_files(package, src_dir)
        return [name for name in found if name.endswith((".pyi", ".txt", "py.typed"))]


class BuildScripts(build_scripts):
    """Copies the launcher, which setuptools would otherwise try to read as a script."""

    def run(self) -> None:
        build_temp = self.get_finalized_command("build").build_temp
        target = Path(self.build_dir)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(Path(build_temp) / LAUNCHER, target / LAUNCHER)
        (target / LAUNCHER).chmod(0o755)


def extensions() -> list[Extension]:
    # `setup.py sdist` and metadata runs come here too: no source may be demanded.
    library = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "csrc").glob("*.c")
        if not path.name.startswith("launcher")
    )
    return [
        Extension(
            f"zeropod._fastpath.{path.stem}",
            [str(path.relative_to(ROOT)), *library],
            include_dirs=["csrc", "bpf", "zeropod/_fastpath"],
            libraries=["bpf"],
            extra_compile_args=["-std=gnu11", "-O2", "-g0", "-fvisibility=hidden"],
            extra_link_args=["-Wl,--gc-sections", "-Wl,--as-needed", "-s"],
            depends=[
                str(header)
                for folder in ("csrc", "zeropod/_fastpath")
                for header in (ROOT / folder).glob("*.h")
            ],
        )
        for path in sorted((ROOT / "zeropod/_fastpath").glob("*.pyx"))
    ]


setup(
    version=VERSION,
    ext_modules=extensions(),
    scripts=[LAUNCHER],  # a placeholder: BuildScripts copies the real one
    cmdclass={
        "build": Build,
        "build_native": BuildNative,
        "build_ext": BuildExt,
        "build_py": BuildPy,
        "build_scripts": BuildScripts,
    },
)
