"""What a finished step is known by, so that a build goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

# Raised when a step's code changes what it makes of the same inputs.
FORMAT: Final = 1


def step_key(name: str, options: Mapping[str, Any], *made_of: str) -> str:
    """A digest of all that decides what a step makes.

    Args:
        name: of the step.
        options: what JSON can hold; its order does not matter.
        made_of: digests of its inputs, in their order.
    """
    said = json.dumps(
        [FORMAT, name, options, made_of], sort_keys=True, separators=(",", ":")
    )
    return blake2b(said.encode(), digest_size=12).hexdigest()
