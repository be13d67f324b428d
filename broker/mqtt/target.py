"""Where an MQTT broker is and who we are to it, as a URL says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from typing_extensions import override

from broker.link import BadUrl, each_address, without_password

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, slots=True)
class MqttTarget:
    """Where a broker is and who we are to it.

    Attributes:
        others: further addresses of the same broker, a cluster's, to be tried in turn.
    """

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: str | None = None
    others: tuple[tuple[str, int], ...] = ()

    @classmethod
    def from_url(cls, url: str) -> MqttTarget:
        """Read `mqtt://user:password@host:1883` or `mqtts://host?ca_file=/path.pem`.

        The members of a cluster are named with commas between: `mqtt://a:1883,b:1883`.

        Raises:
            BadUrl: it names no broker.
        """
        first, *rest = (cls._from_one(each) for each in each_address(url))
        return replace(first, others=tuple((each.host, each.port) for each in rest))

    @classmethod
    def _from_one(cls, url: str) -> MqttTarget:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise BadUrl(f"not the URL of an MQTT broker ({error})") from error
        if parts.scheme not in _PORTS or not parts.hostname:
            raise BadUrl(
                f"{without_password(url)!r} does not name an MQTT broker; write "
                "mqtt://user:password@host:1883, or mqtts:// for TLS"
            )
        ca_files = parse_qs(parts.query).get("ca_file", [None])
        return cls(
            host=parts.hostname,
            port=port or _PORTS[parts.scheme],
            username=None if parts.username is None else unquote(parts.username),
            password=None if parts.password is None else unquote(parts.password),
            tls=parts.scheme == "mqtts",
            ca_file=ca_files[0],
        )

    def next_address(self) -> MqttTarget:
        """The same broker at its next address; itself when it has only one."""
        if not self.others:
            return self
        (host, port), *rest = self.others
        others = (*rest, (self.host, self.port))
        return replace(self, host=host, port=port, others=others)

    @override
    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"
