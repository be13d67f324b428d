"""Which store a registry's place names: `s3://…` a bucket, anything else a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bundle.folder_tree import FolderTree
from bundle.tree import BadPlace

if TYPE_CHECKING:
    from bundle.tree import Tree


def open_tree(place: str | Path) -> Tree:
    """The tree at a folder's path, or at `s3://bucket/prefix`.

    Nothing is asked of the store yet.

    Raises:
        BadPlace: no such kind of place, or one that cannot be read; says why.
    """
    if isinstance(place, Path) or "://" not in place:
        return FolderTree(Path(place).expanduser())
    parts = urlsplit(place)
    if parts.scheme == "file":
        return FolderTree(Path(parts.path))
    if parts.scheme != "s3":
        raise BadPlace(
            f"a registry in {parts.scheme}:// is not known: use a folder or s3://bucket/prefix"
        )
    if not parts.hostname or parts.username or parts.query or parts.fragment:
        raise BadPlace(
            "a bucket is s3://bucket/prefix and nothing else: credentials, the region "
            "and the endpoint come from the environment (AWS_ACCESS_KEY_ID, …)"
        )
    # Imported here: a folder needs no obstore, and an edge agent has none.
    try:
        from bundle.object_tree import open_bucket  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise BadPlace(
            f"{place} needs the Python module {error.name}, which is not installed: "
            "run `pip install obstore`"
        ) from error
    return open_bucket(place)
