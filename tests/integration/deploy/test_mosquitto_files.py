"""Both Mosquitto files, by starting a real one with each.

Only ports, and the folders that exist on a gateway or in the container, are replaced
in a temporary copy; every other line is the committed one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from broker.ports import free_port
from deploy import render

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
PATIENCE_S = 30.0
pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def replaced(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, f"the committed file no longer says {old!r}"
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def mosquitto(config: Path, port: int) -> Iterator[None]:
    program = shutil.which("mosquitto", path=f"/usr/sbin:{os.environ['PATH']}")
    if program is None:
        pytest.fail("run `sudo apt-get install mosquitto`: these tests need it")
    log = config.with_suffix(".log")
    with (
        log.open("w") as out,
        subprocess.Popen([program, "-c", config], stderr=out) as server,
    ):
        try:
            until(lambda: server.poll() is not None or answers(port))
            assert server.poll() is None, log.read_text()
            yield
        finally:
            server.terminate()
            server.wait(PATIENCE_S)
    said = log.read_text()
    assert "Error" not in said
    assert "deprecated" not in said.lower()


def answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        Client(port).close()
        return True
    return False


def until(true: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.02)


@dataclass
class Login:
    """Who a client is; None for anonymous."""

    user: str
    password: str


class Client:
    """A small blocking MQTT client."""

    def __init__(
        self,
        port: int,
        login: Login | None = None,
        *,
        name: str = "",
        clean: bool = True,
    ) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.code: int | None = None
        self._acknowledged: set[int] = set()
        self._mqtt = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=name, clean_session=clean
        )
        if login is not None:
            self._mqtt.username_pw_set(login.user, login.password)
        self._mqtt.on_connect = lambda _c, _u, _f, code, _p: self._connected(code.value)
        self._mqtt.on_message = lambda _c, _u, each: self.heard.append(
            (each.topic, bytes(each.payload))
        )
        self._mqtt.on_subscribe = lambda _c, _u, mid, _r, _p: self._acknowledged.add(
            mid
        )
        self._mqtt.connect("127.0.0.1", port)
        self._mqtt.loop_start()
        until(lambda: self.code is not None)

    def _connected(self, code: int) -> None:
        self.code = code

    @property
    def accepted(self) -> bool:
        return self.code == 0

    def subscribe(self, topic: str) -> None:
        _, mid = self._mqtt.subscribe(topic, qos=1)
        until(lambda: mid in self._acknowledged)

    def publish(self, topic: str, payload: bytes) -> None:
        self._mqtt.publish(topic, payload, qos=1).wait_for_publish(PATIENCE_S)

    def close(self) -> None:
        self._mqtt.disconnect()
        self._mqtt.loop_stop()


@pytest.fixture
def clients() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def folder(short_tmp: Path) -> Path:
    # Started by root, Mosquitto becomes its own user and must still reach its files.
    short_tmp.chmod(0o777)
    (short_tmp / "data").mkdir(mode=0o777)
    (short_tmp / "data").chmod(0o777)
    return short_tmp


def test_gateway_file_starts_and_keeps_answers_for_a_device_that_sleeps(
    folder: Path, clients: contextlib.ExitStack
) -> None:
    port = free_port()
    config = folder / "mosquitto.conf"
    config.write_text(
        replaced(
            (DEPLOY / "mosquitto" / "mosquitto.conf").read_text(),
            {
                "listener 1883 127.0.0.1": f"listener {port} 127.0.0.1",
                "/var/lib/mosquitto/": f"{folder}/data/",
            },
        )
    )
    with mosquitto(config, port):
        device = Client(port, name="cam1", clean=False)
        device.subscribe("answer/cam1")
        device.close()
        agent = Client(port)
        agent.publish("answer/cam1", b"a shirt")
        agent.close()
    with mosquitto(config, port):
        device = Client(port, name="cam1", clean=False)
        clients.callback(device.close)
        until(lambda: device.heard == [("answer/cam1", b"a shirt")])


def test_lan_listener_in_the_guidance_works_once_uncommented(folder: Path) -> None:
    port, lan = free_port(), free_port()
    text = (DEPLOY / "mosquitto" / "mosquitto.conf").read_text()
    text = replaced(
        text,
        {
            "listener 1883 127.0.0.1": f"listener {port} 127.0.0.1",
            "/var/lib/mosquitto/": f"{folder}/data/",
            "# listener 1884 192.0.2.1": f"listener {lan} 127.0.0.1",
            "# allow_anonymous false": "allow_anonymous false",
            "# password_file /etc/mosquitto/": f"password_file {folder}/",
            "# acl_file /etc/mosquitto/": f"acl_file {folder}/",
        },
    )
    (folder / "mosquitto.conf").write_text(text)
    file = str(folder / "passwords")
    subprocess.run(
        ["mosquitto_passwd", "-b", "-c", file, "cam1", "secret-of-cam1"],
        check=True,
        timeout=PATIENCE_S,
    )
    (folder / "passwords").chmod(0o644)
    shutil.copy(DEPLOY / "mosquitto" / "devices.acl", folder)
    with mosquitto(folder / "mosquitto.conf", port):
        assert_closed_to_strangers(lan, Login("cam1", "secret-of-cam1"), Client(port))


def test_compose_file_starts_with_rendered_passwords(folder: Path) -> None:
    env = folder / "env"
    env.write_text("OVERSPILL_DEPLOY_DEVICES=cam1\n")
    render.write_secrets(render.Deployment.read(env), folder / "secrets")
    (folder / "secrets").chmod(0o755)  # in a container, what is inside is mounted
    passwords = render.read_passwords(folder / "secrets" / "passwords")
    port, health = free_port(), free_port()
    text = replaced(
        (DEPLOY / "mosquitto" / "compose.conf").read_text(),
        {
            "listener 1880 127.0.0.1": f"listener {health} 127.0.0.1",
            "\nlistener 1883\n": f"\nlistener {port} 127.0.0.1\n",
            "/etc/overspill/mosquitto-secrets": f"{folder}/secrets/mosquitto",
            "/etc/overspill/mosquitto/": f"{folder}/",
            "/mosquitto/data/": f"{folder}/data/",
        },
    )
    (folder / "compose.conf").write_text(text)
    for name in ("devices.acl", "health.acl"):
        shutil.copy(DEPLOY / "mosquitto" / name, folder)
    with mosquitto(folder / "compose.conf", health):
        checker = Client(health)
        checker.subscribe("$SYS/broker/uptime")
        until(lambda: checker.heard)
        checker.close()
        agent = Client(port, Login("agent", passwords["mosquitto/agent"]))
        assert_closed_to_strangers(
            port, Login("cam1", passwords["mosquitto/cam1"]), agent
        )


def assert_closed_to_strangers(port: int, device: Login, agent: Client) -> None:
    """A device asks and hears in its own name; nobody else comes in."""
    with contextlib.ExitStack() as stack:
        stack.callback(agent.close)
        for stranger in (None, Login(device.user, "not its password")):
            refused = Client(port, stranger)
            stack.callback(refused.close)
            assert not refused.accepted
        cam1 = Client(port, device)
        stack.callback(cam1.close)
        assert cam1.accepted
        agent.subscribe("infer/#")
        cam1.subscribe("answer/#")
        cam1.publish("infer/cam2/fashion", b"in another's name")
        cam1.publish("infer/cam1/fashion", b"in its own")
        until(lambda: agent.heard)
        assert agent.heard == [("infer/cam1/fashion", b"in its own")]
        agent.publish("answer/cam2", b"not for cam1")
        agent.publish("answer/cam1", b"for cam1")
        until(lambda: cam1.heard)
        assert cam1.heard == [("answer/cam1", b"for cam1")]
