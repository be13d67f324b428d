"""The files and the environment that make a RabbitMQ private. Starts nothing."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from broker import topology
from broker.node_info import NodeError, NodeInfo, write_private

MEMORY_LIMIT: Final = "2GB"
DISK_LIMIT: Final = "50MB"
COLLECT_EVERY_MS: Final = 5000
SOCKET_BYTES: Final = 32 * 1024
GARBAGE_WORDS: Final = 4096
COOKIE: Final = ".erlang.cookie"

# Debian's /usr/sbin/rabbitmq-server insists on its own user and folders; these do not.
SCRIPT_FOLDERS: Final = ("/usr/lib/rabbitmq/bin", "/opt/rabbitmq/sbin")
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class RabbitMissing(NodeError):
    """RabbitMQ is not installed on this machine."""


def find_server(
    folders: Sequence[str] = SCRIPT_FOLDERS, path: str | None = None
) -> Path:
    """The start script of the RabbitMQ that is installed here.

    Args:
        folders: looked into first.
        path: where to look then; the system's folders and `PATH` when None.

    Raises:
        RabbitMissing: there is none.
    """
    for folder in folders:
        script = Path(folder) / "rabbitmq-server"
        if script.exists():
            return script.resolve()
    found = shutil.which(
        "rabbitmq-server", path=_search_path() if path is None else path
    )
    if found is None:
        raise RabbitMissing(
            "RabbitMQ is not installed: run `sudo apt-get install rabbitmq-server` "
            "(or get it from https://www.rabbitmq.com/docs/download)"
        )
    return Path(found).resolve()


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"


def find_epmd() -> str:
    """The program that Erlang nodes find each other by.

    Raises:
        RabbitMissing: there is none.
    """
    found = shutil.which("epmd", path=_search_path())
    if found is None:
        beside = sorted(Path("/usr/lib/erlang").glob("erts-*/bin/epmd"))
        if not beside:
            raise RabbitMissing(
                "Erlang's epmd is not installed: run `sudo apt-get install erlang-base`"
            )
        found = str(beside[-1])
    return found


def version_of(server: Path) -> tuple[int, ...]:
    """The version in the path of the server, such as `rabbitmq_server-3.10.8/sbin`."""
    found = re.search(r"rabbitmq_server-(\d+)\.(\d+)", str(server))
    return tuple(int(part) for part in found.groups()) if found else ()


def server_log(folder: Path) -> Path:
    """Where the node in `folder` logs."""
    return folder / "log" / "rabbit.log"


def render_config(info: NodeInfo, folder: Path, version: tuple[int, ...]) -> str:
    """The node's rabbitmq.conf; every key is known to the version it is for."""
    if info.clustered:
        # A member has no say of its own in what the cluster holds. Sessions are
        # replicated too, or an agent could not connect while the node that holds its
        # session is away.
        own = [
            "default_user = admin",
            f"default_pass = {info.passwords['admin']}",
            "mqtt.durable_queue_type = quorum",
        ]
    else:
        own = [f"load_definitions = {folder / 'definitions.json'}"]
    lines = [
        f"listeners.tcp.local = 127.0.0.1:{info.amqp_port}",
        f"mqtt.listeners.tcp.local = 127.0.0.1:{info.mqtt_port}",
        "mqtt.listeners.ssl = none",
        "mqtt.tcp_listen_options.nodelay = true",
        f"mqtt.tcp_listen_options.sndbuf = {SOCKET_BYTES}",
        f"mqtt.tcp_listen_options.recbuf = {SOCKET_BYTES}",
        "mqtt.allow_anonymous = false",
        f"mqtt.vhost = {info.vhost}",
        f"mqtt.exchange = {topology.TOPIC_EXCHANGE}",
        *own,
        f"log.dir = {folder / 'log'}",
        f"log.file = {server_log(folder).name}",
        "log.file.level = info",
        "log.console = false",
        f"vm_memory_high_watermark.absolute = {MEMORY_LIMIT}",
        f"disk_free_limit.absolute = {DISK_LIMIT}",
        "raft.wal_max_size_bytes = 67108864",
        # Each of a thousand quiet sessions would keep the last megabyte that went
        # through it, because a process with little to do collects no garbage.
        "background_gc_enabled = true",
        f"background_gc_target_interval = {COLLECT_EVERY_MS}",
    ]
    if version >= (4,):
        lines.append("anonymous_login_user = none")
    return "\n".join(lines) + "\n"


def write_files(info: NodeInfo, folder: Path, version: tuple[int, ...]) -> None:
    """Write all that the node reads when it boots."""
    for name in ("data", "log", "conf.d"):
        (folder / name).mkdir(exist_ok=True)
    cookie = folder / COOKIE
    if not cookie.exists():
        write_private(cookie, secrets.token_hex(16), mode=0o400)
    write_private(
        folder / "definitions.json",
        json.dumps(
            topology.definitions(_users(info), vhost=info.vhost, models=info.models)
        ),
    )
    (folder / "enabled_plugins").write_text("[rabbitmq_mqtt].\n")
    (folder / "environment").write_text("")
    (folder / "rabbitmq.conf").write_text(render_config(info, folder, version))


def _users(info: NodeInfo) -> dict[topology.User, str]:
    users = [topology.admin_user(), topology.worker_user(), topology.fleet_user()]
    users += [topology.agent_user(agent) for agent in info.agents]
    return {user: info.passwords[user.name] for user in users}


def environment(info: NodeInfo, folder: Path) -> dict[str, str]:
    """All of the node's environment: nothing of the system's own node leaks in."""
    local = "-kernel inet_dist_use_interface {127,0,0,1}"
    tidy = f"+hmbs {GARBAGE_WORDS}"
    return {
        "HOME": str(folder),
        "PATH": f"{SYSTEM_PATH}:{os.environ.get('PATH', '')}",
        "LANG": "C.UTF-8",
        "ERL_EPMD_PORT": str(info.epmd_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_CRASH_DUMP": str(folder / "log" / "erl_crash.dump"),
        "RABBITMQ_NODENAME": info.name,
        "RABBITMQ_CONF_ENV_FILE": str(folder / "environment"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_CONFIG_FILES": str(folder / "conf.d"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(folder / "data" / "config"),
        "RABBITMQ_DIST_PORT": str(info.dist_port),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{local} {tidy}",
        "RABBITMQ_CTL_ERL_ARGS": local,
        # Without these two the start script stays in front of the node and its
        # process id is not the node's.
        "RABBITMQ_ALLOW_INPUT": "1",
        "RABBITMQ_SERVER_START_ARGS": "-noinput -start_epmd false",
    }
