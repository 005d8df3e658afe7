"""Where the data plane listens and what devices dial."""

from __future__ import annotations

import re
import socket

import pytest

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.wire.address import (
    ListenAddress,
    address_to_dial,
    is_loopback,
    is_on_this_machine,
    parse_listen_address,
)


@pytest.mark.parametrize(
    ("text", "host", "ports"),
    [
        ("127.0.0.1:0", "127.0.0.1", [0]),
        ("0.0.0.0:9095-9097", "0.0.0.0", [9095, 9096, 9097]),
        ("edge.local:80", "edge.local", [80]),
        ("[::1]:7", "::1", [7]),
        ("h:65535-65535", "h", [65535]),
    ],
)
def test_parse(text: str, host: str, ports: list[int]) -> None:
    parsed = parse_listen_address(text)
    assert (parsed.host, list(parsed.ports)) == (host, ports)


@pytest.mark.parametrize(
    "text", ["", "host", ":80", "host:", "host:abc", "host:1-", "host:-1", "host:1-2-3", "host:1.5"]
)
def test_malformed(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"`data_address` is {text!r}; expected host:port")):
        parse_listen_address(text)


@pytest.mark.parametrize(("text", "ports"), [("h:65536", "65536-65536"), ("h:9-8", "9-8"), ("h:1-70000", "1-70000")])
def test_ports_out_of_range(text: str, ports: str) -> None:
    with pytest.raises(ConfigError, match=f"has the ports {ports}; expected 0..65535"):
        parse_listen_address(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "edge.local", "128.0.0.1", "localhost.example.com"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("advertised", "dialled"),
    [
        (None, "10.0.0.5:4000"),
        ("edge.example.com", "edge.example.com:4000"),
        ("edge.example.com:443", "edge.example.com:443"),
        ("192.0.2.7", "192.0.2.7:4000"),
        ("[2001:db8::1]", "[2001:db8::1]:4000"),
        ("[2001:db8::1]:443", "[2001:db8::1]:443"),
        ("2001:db8::1", "[2001:db8::1]:4000"),
    ],
)
def test_what_devices_dial(advertised: str | None, dialled: str) -> None:
    assert address_to_dial(advertised, ListenAddress("10.0.0.5", range(1)), 4000) == dialled


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_nobody_can_dial_a_wildcard(host: str) -> None:
    listen = ListenAddress(host, range(1))
    with pytest.raises(ConfigError, match=f"listens on {host} and `advertised_address` is not given"):
        address_to_dial(None, listen, 4000)
    assert address_to_dial("edge.local", listen, 4000) == "edge.local:4000"


def test_ipv6_is_joined_in_brackets() -> None:
    assert ListenAddress("::1", range(1)).join(5) == "[::1]:5"
    assert ListenAddress("h", range(1)).join(5) == "h:5"


@pytest.mark.parametrize("address", ["127.0.0.1:9095", "localhost:9095", "[::1]:9095"])
def test_an_edge_on_this_machine(address: str) -> None:
    assert is_on_this_machine(address)


def test_an_edge_at_an_address_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is looked up, and the way to it does not leave the machine."""

    def look_up(host: str, port: str, type: int) -> list[tuple[object, ...]]:
        assert (host, port) == ("edge.local", "9095")
        return [(socket.AF_INET, type, 0, "", ("127.0.0.1", 9095))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert is_on_this_machine("edge.local:9095")


@pytest.mark.parametrize("address", ["192.0.2.1:9095", "[2001:db8::1]:9095", "nobody.invalid:9095"])
def test_an_edge_elsewhere(address: str) -> None:
    assert not is_on_this_machine(address)
