from __future__ import annotations

from typing import Any

import pytest

from flwr_splitkd.errors import ConfigError, PeerLostError
from flwr_splitkd.tiers.edge.chain import CloudAccess, CloudLink
from flwr_splitkd.wire.certificates import make_certificates, tls_files, write_new
from flwr_splitkd.wire.cloud_server import CloudServer
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

SECRET = b"a secret of many bytes"


def access(**changes: Any) -> CloudAccess:
    given: dict[str, Any] = {"address": "127.0.0.1:9096", "edge": "north", "token": SECRET, "task": "qa", **changes}
    return CloudAccess(**given)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"codec": "float8"}, "`codec` is 'float8'; expected one of none, float16, bfloat16, int8"),
        ({"patience_s": -1.0}, "`patience_s` is -1.0; expected at least 0"),
        ({"patience_s": float("nan")}, "`patience_s` is nan"),
        ({"connect_timeout_s": 0.0}, "`connect_timeout_s` is 0.0; expected more than 0"),
        ({"token": b""}, "`token` of edge 'north' has 0 bytes; expected the secret"),
        ({"edge": ""}, "`edge` is '' and `task` is 'qa'; expected the names"),
        ({"task": ""}, "`edge` is 'north' and `task` is ''"),
        ({"address": "cloud.example.com"}, "`address` of the cloud is 'cloud.example.com'; expected host:port"),
        ({"address": ":9096"}, "expected host:port"),
    ],
)
def test_mistakes(changes: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ConfigError, match=pattern):
        access(**changes)


@pytest.mark.parametrize("host", ["cloud.example.com", "10.0.0.3", "[2001:db8::1]"])
def test_plaintext_leaves_this_machine_only_if_told_to(host: str) -> None:
    with pytest.raises(ConfigError, match=r"without a root certificate; expected one .*Pass `insecure=True`"):
        access(address=f"{host}:9096")
    assert access(address=f"{host}:9096", insecure=True).root_certificate == b""
    assert access(address=f"{host}:9096", root_certificate=b"pem").insecure is False


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_plaintext_on_this_machine(host: str) -> None:
    assert access(address=f"{host}:9096", patience_s=0.0).insecure is False


def test_a_forgotten_certificate_is_named(tmp_path: Any) -> None:
    write_new(tmp_path, make_certificates(hosts=["127.0.0.1"], supernodes=0, days=1))
    server = CloudServer(edges={"north": SECRET}, check=lambda hello: None, tls=tls_files(tmp_path))
    server.start(lambda session: None)
    link = CloudLink(access(address=server.address, connect_timeout_s=1.0), encoder_width=4)
    try:
        with pytest.raises(PeerLostError) as caught:
            link.open(pb.TASK_START_CONTINUE)
    finally:
        link.close()
        server.stop()
    said = str(caught.value)
    assert f"The cloud at {server.address} did not answer for 1 s" in said and "no root certificate" in said
    assert "advertised_address" not in said
