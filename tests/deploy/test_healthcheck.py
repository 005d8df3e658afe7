"""What an image's HEALTHCHECK asks, against a real health service and a real port."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from import_graph import ROOT


@pytest.fixture(scope="module")
def healthcheck() -> ModuleType:
    spec = importlib.util.spec_from_file_location("healthcheck", ROOT / "deploy" / "healthcheck.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def service() -> Iterator[tuple[health.HealthServicer, str]]:
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_service_that_serves_and_one_that_does_not(
    healthcheck: ModuleType, service: tuple[health.HealthServicer, str], capsys: pytest.CaptureFixture[str]
) -> None:
    servicer, address = service
    assert healthcheck.main(["grpc", address]) == 0 and capsys.readouterr().out == ""
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert healthcheck.main(["grpc", address]) == 1
    assert capsys.readouterr().out == f"{address} says NOT_SERVING\n"


def test_a_port(healthcheck: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert healthcheck.main(["tcp", address]) == 0
    assert healthcheck.main(["tcp", address]) == 1
    assert healthcheck.main(["grpc", address]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{address} does not answer: ") and said[1] == f"{address} does not answer: UNAVAILABLE"


@pytest.mark.parametrize("arguments", [[], ["grpc"], ["http", "127.0.0.1:1"], ["tcp", "127.0.0.1"], ["tcp", "a:b"]])
def test_what_it_does_not_understand(
    healthcheck: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert healthcheck.main(arguments) == 2
    assert "healthcheck.py grpc|tcp HOST:PORT" in capsys.readouterr().err
