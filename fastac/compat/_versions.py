"""A version that a door was not tested with is let in, with one warning."""

from __future__ import annotations

import re
import warnings
from importlib import metadata

__all__ = ["check_version"]

_checked: set[str] = set()


def check_version(distribution: str, *, tested: tuple[str, str]) -> None:
    """Warn, once a process, if the installed version is not one of those that a door was tested with.

    Args:
        distribution: As the package index calls it.
        tested: The first and the last version tested; both count as whole series: `("2.7", "2.9")` has 2.7.0 and 2.9.2
            in it.

    Example:
        >>> check_version("numpy", tested=("1.26", "9999"))  # nothing to say
    """
    if distribution in _checked:
        return
    _checked.add(distribution)
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        version = "of no known version"
    first, last = (_numbers(bound) for bound in tested)
    found = _numbers(version)
    if not (found and first <= found and found[: len(last)] <= last):
        warnings.warn(
            f"fastac was tested with {distribution} {tested[0]} to {tested[1]}; this is {version}: it may work, or not",
            stacklevel=3,
        )


def _numbers(version: str) -> tuple[int, ...]:
    """The release's numbers, without what follows them: 2.9.0a4 gives (2, 9, 0)."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(map(int, found[1].split("."))) if found else ()
