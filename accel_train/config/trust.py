"""Whose code a saved run may make this process import: that of installed packages, and what the user trusts."""

from __future__ import annotations

import contextlib
import os
import site
import sys
import sysconfig
from collections.abc import Generator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from accel_train.errors import UserError


@contextlib.contextmanager
def imports_for(what: Path | str, trust: bool) -> Generator[None]:
    """Within it, only modules of installed packages can be imported, unless ``trust``.

    A config names classes, and to import one is to run the file that it is in, which may be anybody's. What this
    process has imported already stays as it is: that code has run.

    Args:
        what: the run, for the message.

    Raises:
        UserError: one line with the module and its file, if something failed for want of it. Nothing of it has run.
    """
    if trust:
        yield
        return
    guard, path = _Guard(), list(sys.path)
    sys.meta_path.insert(0, guard)
    try:
        yield
    except Exception:
        if guard.refused:
            name, file = next(iter(guard.refused.items()))
            raise UserError(
                f"{what}: this would run the code of {name} in {file}, which is in no installed package and not on "
                "PYTHONPATH; if you trust it, add --trust (in Python: trust=True)"
            ) from None
        raise
    finally:
        sys.meta_path.remove(guard)
        sys.path[:] = path


def is_own(cls: type) -> bool:
    """Whether a class is in no installed package, so that a run made with it needs ``--trust`` later."""
    name = cls.__module__
    file = getattr(sys.modules.get(name), "__file__", None)
    return _top(name) != _top(__name__) and not (file and _entry(name, file) in _roots())


class _Guard:
    """An import hook before all others: to whoever imports them, modules that are not installed are missing."""

    def __init__(self) -> None:
        self.roots = _roots()
        self.refused: dict[str, str] = {}

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        whole = sys.modules.get(_top(name))
        if path is not None and getattr(whole, "__file__", None):
            return None  # a part of a package that is there already
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                editable = "__editable__" in getattr(finder, "__module__", type(finder).__module__)
                return spec if editable or self._allows(spec) else self._refuse(spec)
        return None

    def _allows(self, spec: ModuleSpec) -> bool:
        return not (places := _locations(spec)) or all(_entry(spec.name, place) in self.roots for place in places)

    def _refuse(self, spec: ModuleSpec) -> ModuleSpec:
        self.refused[spec.name] = _locations(spec)[0]
        raise ModuleNotFoundError(f"{spec.name} is in no installed package", name=spec.name)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _locations(spec: ModuleSpec) -> list[str]:
    """Its file, or its folders where it is a package without one; nothing for what is built into Python."""
    return [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())


def _entry(name: str, place: str) -> str:
    """The entry of sys.path under which a module was found."""
    path = Path(os.path.realpath(place))
    path = path.parent if path.name.startswith("__init__.") else path
    return str(path.parents[name.count(".")])


def _roots() -> set[str]:
    """Where packages are installed, the folders of those that are installed in place, and what PYTHONPATH names, since
    somebody meant that. Not the working directory, which may be anybody's."""
    installed = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    installed += [site.getusersitepackages(), *(p for p in sys.path if p.endswith(("site-packages", "dist-packages")))]
    standard = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    found = [*installed, *standard, *(os.path.join(path, "lib-dynload") for path in standard)]
    found += os.environ.get("PYTHONPATH", "").split(os.pathsep)
    for pth in (pth for path in installed for pth in Path(path).glob("*.pth")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found += [line for line in pth.read_text().splitlines() if os.path.isabs(line) and os.path.isdir(line)]
    return {os.path.realpath(path) for path in found} - {os.path.realpath(os.getcwd())}
