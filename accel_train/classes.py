"""Classes and functions by their path: ``module.Name``, or ``FILE.py:Name`` for those of a script."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Generator
from pathlib import Path
from types import ModuleType

_files: dict[str, str] = {}
"""Modules that were named by their file -> the file."""
_on_their_way: list[str] = []


def is_file(path: str) -> bool:
    """Whether this is ``FILE.py:Name``."""
    return path.rpartition(":")[0].endswith(".py")


def split(path: str) -> tuple[str, str]:
    """(module or file, name)."""
    where, _, name = path.rpartition(":" if is_file(path) else ".")
    return where, name


def path_of(cls: type) -> str:
    """By which a class can be found again in another process, if it can at all, see ``unfindable``."""
    module, name = cls.__module__, cls.__qualname__
    main = sys.modules["__main__"]
    if module == "__main__" and getattr(main, name, None) is cls:
        if (spec := getattr(main, "__spec__", None)) is not None:  # python -m
            return f"{spec.name}.{name}"
        if os.path.isfile(file := getattr(main, "__file__", None) or ""):
            return f"{os.path.realpath(file)}:{name}"
    return f"{_files[module]}:{name}" if module in _files else f"{module}.{name}"


def unfindable(cls: type) -> str:
    """Why another process cannot find a class; "" if it can."""
    if "." in cls.__qualname__:
        return "is not at the top level of its file"
    return "was made in a notebook or by typing" if path_of(cls).startswith("__main__.") else ""


def same_class(one: str, other: str) -> bool:
    """Whether two paths mean the same class: a file may have been moved, and earlier versions wrote ``__main__.Name``
    for what a script had defined."""
    if one == other:
        return True
    (here, name), (there, other_name) = split(one), split(other)
    by_file = [os.path.basename(where) for where in (here, there) if where.endswith(".py")]
    alike = len(set(by_file)) == 1 and (len(by_file) == 2 or "__main__" in (here, there))
    return name == other_name and alike


def same_optimizer(one: str, other: str) -> bool:
    """Whether two paths mean the same optimiser: those of torch need no module, and go by any case."""
    return _in_torch(one) == _in_torch(other)


def _in_torch(path: str) -> str:
    module, _, name = path.rpartition(".")
    return name.lower() if module in ("", "torch.optim") else path


def module_of(where: str) -> ModuleType:
    """A module by its name, or by its file: as in running that, its folder comes first among those for imports.

    Raises:
        ImportError: there is none, or one of that name and another file has been imported.
    """
    if not where.endswith(".py"):
        return importlib.import_module(where)
    file = os.path.realpath(Path(where).expanduser())
    if not os.path.isfile(file):
        raise ImportError(f"there is no file {file}")
    main = sys.modules["__main__"]
    if os.path.realpath(getattr(main, "__file__", None) or "") == file:
        return main
    folder, name = os.path.dirname(file), Path(file).stem
    if "." in name:
        raise ImportError(f"no module can be called {name!r}; rename the file")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with _importing(file):
        found = importlib.import_module(name)
    if os.path.realpath(found.__file__ or "") != file:
        raise ImportError(f"{name!r} is also the name of {found.__file__ or 'a part of Python'}; rename the file")
    _files[name] = file
    return found


def being_imported() -> str:
    """The file that is being imported for what it defines; "" for none."""
    return _on_their_way[-1] if _on_their_way else ""


@contextlib.contextmanager
def _importing(file: str) -> Generator[None]:
    _on_their_way.append(file)
    try:
        yield
    except SystemExit:
        raise ImportError(f"{file} ends as soon as it is imported: what is to happen only when it is run, such as "
                          'reading a command line, belongs under `if __name__ == "__main__":`') from None  # fmt: skip
    finally:
        _on_their_way.pop()
