"""Real sockets: free, taken, closed, silent, with TLS."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from flwr_splitkd.cli.doctor.finding import Finding, Status
from flwr_splitkd.cli.doctor.ports import Peer, check_port, check_reachable, parse_peer, parse_port
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.wire.certificates import make_certificates, tls_files, write_new
from flwr_splitkd.wire.server import DataPlaneServer
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

MODEL = pb.ModelFingerprint(architecture="A", num_blocks=4)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        yield listening


def port_of(listening: socket.socket) -> int:
    return int(listening.getsockname()[1])


def reach(peer: Peer, tls: ssl.SSLContext | None = None, timeout_s: float = 2.0) -> list[Finding]:
    return list(check_reachable("edge", peer, timeout_s=timeout_s, tls=tls, listens="Start it."))


def test_a_busy_port_is_named_with_its_owner(listener: socket.socket) -> None:
    port = port_of(listener)
    found = check_port(parse_port(f"127.0.0.1:{port}"))
    assert found.status is Status.WRONG and found.name == f"port 127.0.0.1:{port}"
    assert f"{port} is taken by " in found.seen and f"(process {os.getpid()}, this one)" in found.seen
    assert "choose another port or a range" in found.remedy


def test_a_range_with_a_busy_port_is_free_as_for_the_data_plane(listener: socket.socket) -> None:
    port = port_of(listener)
    found = check_port(parse_port(f"127.0.0.1:{port}-{min(port + 9, 65535)}"))
    assert found.status is Status.OK
    assert found.seen.startswith(f"{port} is taken by ") and found.seen.endswith(" is free")


def test_any_port_and_one_that_was_just_given_back(listener: socket.socket) -> None:
    assert check_port(parse_port("127.0.0.1:0")).seen == "any is free"
    port = port_of(listener)
    listener.close()
    assert check_port(parse_port(f"127.0.0.1:{port}")).seen == f"{port} is free"


def test_an_address_of_another_machine() -> None:
    found = check_port(parse_port("192.0.2.1:9095"))  # RFC 5737: nobody's
    assert found.status is Status.WRONG and "Choose an address of this machine" in found.remedy


def test_a_port_that_answers_and_one_that_is_closed(listener: socket.socket) -> None:
    peer = Peer(host="127.0.0.1", port=port_of(listener))
    (found,) = reach(peer)
    assert (found.status, found.seen) == (Status.OK, "reached")
    listener.close()
    (found,) = reach(peer)
    assert found.status is Status.WRONG and found.name == f"edge {peer}"
    assert found.seen.startswith("closed: ") and found.remedy.startswith("Start it. Check the port")


def test_a_name_that_nobody_knows() -> None:
    (found,) = reach(Peer(host="edge.invalid", port=9095))  # RFC 2606: never a name
    assert found.status is Status.WRONG and found.seen.startswith("'edge.invalid' cannot be resolved")
    assert "/etc/hosts" in found.remedy


def test_a_firewall_that_drops() -> None:
    # A queue of connections that is full answers nothing, as a firewall does.
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        waiting = []
        for _ in range(4):
            queued = socket.socket()
            queued.setblocking(False)
            queued.connect_ex(listening.getsockname())
            waiting.append(queued)
        (found,) = reach(Peer(host="127.0.0.1", port=port_of(listening)), timeout_s=0.3)
        for queued in waiting:
            queued.close()
    assert found.status is Status.WRONG and found.seen == "no answer within 0.3 s"
    assert "firewall" in found.remedy


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("certificates")
    write_new(folder, make_certificates(hosts=["localhost"], supernodes=0, days=1))
    return folder


@pytest.fixture(scope="module")
def edge(certificates: Path) -> Iterator[int]:
    """The port of a real data plane."""
    running = DataPlaneServer(data_address="127.0.0.1:0", advertised_address="localhost", tls=tls_files(certificates))
    running.start(model=MODEL, codecs=())
    yield int(running.address.rpartition(":")[2])
    running.stop()


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "ca.crt"))


def test_a_data_plane_whose_certificate_is_trusted(edge: int, certificates: Path) -> None:
    reached, trusted = reach(Peer(host="localhost", port=edge), trusting(certificates))
    assert reached.status is trusted.status is Status.OK
    assert reached.seen == "reached at 127.0.0.1" and trusted.seen.startswith("TLSv1")


def test_the_same_by_another_name(edge: int, certificates: Path) -> None:
    reached, refused = reach(Peer(host="127.0.0.1", port=edge), trusting(certificates))
    assert reached.status is Status.OK and refused.status is Status.WRONG
    assert "127.0.0.1" in refused.seen and "flwr-splitkd certificates FOLDER --host 127.0.0.1" in refused.remedy


def test_the_same_with_another_authority(edge: int, tmp_path: Path) -> None:
    write_new(tmp_path, make_certificates(hosts=["localhost"], supernodes=0, days=1))
    _, refused = reach(Peer(host="localhost", port=edge), trusting(tmp_path))
    assert refused.status is Status.WRONG and ("signature" in refused.seen or "issuer" in refused.seen)
    assert "an authority in the root certificate" in refused.expected


def test_a_server_without_tls(certificates: Path) -> None:
    running = DataPlaneServer(data_address="127.0.0.1:0")
    running.start(model=MODEL, codecs=())
    try:
        port = int(running.address.rpartition(":")[2])
        _, refused = reach(Peer(host="localhost", port=port), trusting(certificates))
    finally:
        running.stop()
    assert refused.status is Status.WRONG and refused.seen.startswith("no handshake: ")
    assert "leave out the root certificate" in refused.remedy


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("edge.local:8000", ("edge.local", 8000)),
        ("[fd00::10]:9095", ("fd00::10", 9095)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
    ],
)
def test_addresses(text: str, peer: tuple[str, int]) -> None:
    parsed = parse_peer(text)
    assert (parsed.host, parsed.port) == peer and str(parsed) == text


@pytest.mark.parametrize(
    "text", ["edge.local", "edge.local:", ":8000", "fd00::10:8000", "edge:0", "edge:65536", "https://edge:8000"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="expected host:port"):
        parse_peer(text)


def test_ports_to_listen_on() -> None:
    assert parse_port("9095-9105").join(9096) == "0.0.0.0:9096"
    assert parse_port("[::1]:9095").host == "::1"
    with pytest.raises(ConfigError, match="9105-9095"):
        parse_port("9105-9095")
