"""A private PostgreSQL: Debian's programs, a temporary folder, only a unix socket."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

WAIT_S = 60.0


class PrivatePostgres:
    """A server of the tests' own; ended by its own id.

    It refuses to run as root, so as root it is given to `postgres` or `nobody`.
    """

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._folder = Path(tempfile.mkdtemp(prefix="pg"))
        self._user = _unprivileged()
        self._made = 0
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make a cluster and wait until it takes connections."""
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        data = self._folder / "data"
        subprocess.run(
            [
                self._binaries / "initdb",
                *("--pgdata", data, "--username", "tests", "--auth", "trust"),
                *("--encoding", "UTF8", "--locale", "C", "--no-sync"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            user=self._user,
            cwd=self._folder,
        )
        with (self._folder / "log").open("wb") as log:
            self._server = subprocess.Popen(
                [
                    self._binaries / "postgres",
                    *("-D", data, "-k", self._folder, "-c", "listen_addresses="),
                    *("-c", "fsync=off", "-c", "full_page_writes=off"),
                    *("-c", "shared_buffers=16MB", "-c", "max_connections=40"),
                ],
                stdout=log,
                stderr=log,
                user=self._user,
                cwd=self._folder,
            )
        give_up = time.monotonic() + WAIT_S
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
            except psycopg.OperationalError:
                if self._server.poll() is not None or time.monotonic() > give_up:
                    told = (self._folder / "log").read_text()
                    raise RuntimeError(f"PostgreSQL did not start: {told}") from None
                time.sleep(0.05)
            else:
                return

    def url(self, database: str) -> str:
        """Where a database of this server is."""
        return f"postgresql://tests@/{database}?host={self._folder}"

    def fresh(self) -> str:
        """The URL of a new, empty database."""
        self._made += 1
        name = f"fleet{self._made}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
        return self.url(name)

    def stop(self) -> None:
        """End it, with whatever is connected, and remove its folder."""
        if self._server is not None:
            self._server.terminate()
            try:
                self._server.wait(10)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def binaries() -> Path | None:
    """Where Debian keeps the newest installed server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


def _unprivileged() -> str | None:
    if os.geteuid() != 0:
        return None
    known = {each.pw_name for each in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"
