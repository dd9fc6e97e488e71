"""Packages whose names are imported when they are first used (PEP 562)."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def attach(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__`.

    Args:
        package: its `__name__`.
        homes: name -> the submodule that defines it; "" where the name is a submodule itself.

    Examples:
        >>> getattr_, dir_ = attach("gen_core", {"losses": "", "nt_xent": "losses.contrastive"})
        >>> getattr_("losses").__name__, dir_()
        ('gen_core.losses', ['losses', 'nt_xent'])
    """

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        return getattr(import_module(f"{package}.{home}"), name) if home else import_module(f"{package}.{name}")

    return getattr_, lambda: sorted(homes)
