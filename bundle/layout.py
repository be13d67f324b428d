"""Where everything of a registry lies, as paths below its root.

The same in a folder, in a bucket, over MQTT and over HTTPS.

    metadata/…                  what TUF signs: 1.root.json, timestamp.json, …
    targets/{model}/…           seals, by what TUF calls them (`seal_target`)
    blobs/{sha256}              packed bundles and deltas, by digest; cut by ranges
    deltas/{base}/{wanted}.json how one blob is made of another (an offer, unsigned:
                                what comes of it is verified)
    desired/{agent}             what an agent should serve; only itself may read it
"""

from __future__ import annotations

from typing import Final

METADATA: Final = "metadata"
TARGETS: Final = "targets"
BLOBS: Final = "blobs"
DELTAS: Final = "deltas"
DESIRED: Final = "desired"
PUBLIC: Final = (METADATA, TARGETS, BLOBS, DELTAS)


def metadata(file: str) -> str:
    """A metadata file by its name, such as `3.root.json`."""
    return f"{METADATA}/{file}"


def seal_target(model: str, version: str, epoch: int) -> str:
    """What TUF calls the seal of one version in one epoch.

    TUF puts the digest before the last part, so the file lies at
    `targets/{model}/{sha256}.{version}.{epoch}.json`.
    """
    return f"{model}/{version}.{epoch}.json"


def cloud_target(model: str, version: str) -> str:
    """What TUF calls the seal of a folder that the worker pool loads."""
    return f"cloud/{model}/{version}.json"


def target_file(target: str, sha256: str) -> str:
    """Where a target's file lies (a consistent snapshot)."""
    folder, _, name = target.rpartition("/")
    return f"{TARGETS}/{folder}/{sha256}.{name}"


def blob(sha256: str) -> str:
    """A packed bundle or a delta."""
    return f"{BLOBS}/{sha256}"


def delta_offer(base_sha256: str, wanted_sha256: str) -> str:
    """How to make one packed bundle of another."""
    return f"{DELTAS}/{base_sha256}/{wanted_sha256}.json"


def desired(agent: str) -> str:
    """What an agent should serve; only itself may read it."""
    return f"{DESIRED}/{agent}"


def is_public(path: str) -> bool:
    """Whether every agent may read it."""
    return path.split("/", 1)[0] in PUBLIC
