"""What the zygote does once so that the shims forked from it keep sharing its memory.

A page is shared until somebody writes to it. What an interpreter writes to while a shim lives and
sleeps, measured with 20 pods (private memory per shim, docs/performance.md has the figures):

reference counts  in nearly every object that is looked at   objects become immortal
new objects       in the holes between old ones              the holes are filled
inline caches     in the code of every function that runs    code that shims run is put together
versions          in types and modules, at their first use   used once before the fork
hashes            in strings, when they are asked for        computed
names that were   in the cache of looked-up attributes,      the cache is emptied
looked up         which frees them in the end
interned strings  in one big table: pathlib interns the      pathlib does not
                  parts of every path, and after some
                  thousands the whole table is copied

Which code shims run is known from a recording, `code_layout.txt`: a line "module qualname" for each
function. `python -m benchmarks.layout` makes it anew. A function that it lacks, or that is no more,
costs some memory and nothing else.
"""

from __future__ import annotations

import gc
import sys
from importlib import resources
from types import CodeType, FunctionType, ModuleType
from typing import Final

from zeropod._fastpath import _heap

_RUNS: Final = 4  # until the interpreter has specialized a function, 3.13: 2


def share() -> None:
    """To be called after everything is imported and before the first fork."""
    _let_pathlib_intern_nothing()
    _gather(_layout())
    _use_types()
    _use_modules()
    gc.collect()
    _heap.forget_names()
    _heap.immortalize([*gc.get_objects(), *_types()])
    gc.collect()
    gc.freeze()
    _heap.forget_names()
    _heap.fill()


def _layout() -> frozenset[str]:
    return frozenset((resources.files(__package__) / "code_layout.txt").read_text().splitlines())


def _gather(layout: frozenset[str]) -> None:
    """Give these functions copies of their code, which so lie side by side."""
    functions = [object for object in gc.get_objects() if type(object) is FunctionType]
    found = [
        (function, function.__code__, module)
        for function in functions
        if _listed(function.__code__, module := function.__globals__.get("__name__"), layout)
    ]
    for _, code, module in found:
        _copied(code, module, layout)  # code keeps what a copy needs of it: not between the copies
    gc.collect()
    _heap.fill()
    for function, code, module in found:
        function.__code__ = _copied(code, module, layout)


def _listed(code: CodeType, module: object, layout: frozenset[str]) -> bool:
    """Whether it or a function in it is."""
    return f"{module} {code.co_qualname}" in layout or any(
        _listed(inner, module, layout) for inner in code.co_consts if isinstance(inner, CodeType)
    )


def _copied(code: CodeType, module: object, layout: frozenset[str]) -> CodeType:
    consts = (
        _copied(const, module, layout)
        if isinstance(const, CodeType) and _listed(const, module, layout)
        else const
        for const in code.co_consts
    )
    return code.replace(co_consts=tuple(consts))


def _types() -> list[type]:
    """All that there are; the garbage collector knows only those made by a class statement."""
    found: dict[type, None] = {object: None}
    todo: list[type] = [object]
    while todo:
        new = [kind for kind in type.__subclasses__(todo.pop()) if kind not in found]
        found.update(dict.fromkeys(new))
        todo += new
    return list(found)


def _use_types() -> None:
    """The first look for an attribute gives a type its version."""
    for kind in _types():
        getattr(kind, "__zeropod__", None)


def _use_modules() -> None:
    """The first function that looks for a global of a module gives its dict a version."""
    for module in tuple(sys.modules.values()):
        if isinstance(module, ModuleType):
            look = FunctionType(_look.__code__.replace(), vars(module))
            for _ in range(_RUNS):
                look()


def _look() -> object:
    return __name__


class _Sys:
    """The module `sys`, for one that uses ``sys.intern`` as a cache only."""

    intern = staticmethod(str)

    def __getattr__(self, name: str) -> object:
        return getattr(sys, name)


def _let_pathlib_intern_nothing() -> None:
    for name in ("pathlib", "pathlib._local"):  # the second one: 3.13
        module = sys.modules.get(name)
        if hasattr(module, "sys"):
            setattr(module, "sys", _Sys())  # noqa: B010  (mypy knows that it is a module)
