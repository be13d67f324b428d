"""What a build needs and a gateway or a fleet's image does not have."""

from __future__ import annotations

from importlib.util import find_spec

from builder.core.refusal import BuildRefused


def check_installed(*modules: str) -> None:
    """Refuse early, and not after an hour of training.

    Args:
        modules: by the names they are imported by.

    Raises:
        BuildRefused: one is not installed.
    """
    missing = [each for each in modules if find_spec(each) is None]
    if missing:
        raise BuildRefused(
            f"this needs the Python modules {', '.join(missing)}, which are not "
            "installed: run `pip install 'overspill[build]'`"
        )
