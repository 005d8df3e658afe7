"""The Compose files: against Compose's own schema, and what each service may see."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from import_graph import ROOT

FOLDER = ROOT / "deploy" / "compose"
FILES = sorted(FOLDER.glob("compose*.yaml"))
PRIVATE = re.compile(r"\.(key|token)$")


@lru_cache
def content(name: str) -> dict[str, Any]:
    loaded = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def merged(*names: str) -> dict[str, dict[str, Any]]:
    """The services of several files; of what later ones add only what the tests look at: lists grow, mappings are merged."""
    services: dict[str, dict[str, Any]] = {}
    for name in names:
        for service, settings in content(name)["services"].items():
            known = services.setdefault(service, {})
            for key, value in settings.items():
                before = known.get(key)
                if isinstance(before, list):
                    known[key] = before + value
                elif isinstance(before, dict):
                    known[key] = {**before, **value}
                else:
                    known[key] = value
    return services


def mounted(service: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Files and folders of the host by where the service finds them."""
    return {entry["target"]: entry for entry in service["volumes"] if isinstance(entry, dict)}


def test_the_files_are_here() -> None:
    names = {"compose.yaml", "compose.chain.yaml", "compose.gpu.yaml", "compose.gpu-chain.yaml", "compose.jetson.yaml"}
    assert {path.name for path in FILES} == names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_schema(path: Path) -> None:
    spec = importlib.util.find_spec("check_jsonschema")
    if spec is None or spec.origin is None:
        pytest.skip("check-jsonschema, which brings Compose's schema, is not installed")
    import jsonschema

    schema = Path(spec.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    validator = jsonschema.validators.validator_for(known := json.loads(schema.read_text(encoding="utf-8")))(known)
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(content(path.name))] == []
    broken = {**content(path.name), "servces": {}}
    assert not validator.is_valid(broken)


@pytest.mark.parametrize(
    "names", [("compose.yaml",), ("compose.yaml", "compose.chain.yaml"), ("compose.jetson.yaml",)], ids="+".join
)
def test_every_service(names: tuple[str, ...]) -> None:
    for name, service in merged(*names).items():
        build = service["build"]
        assert (FOLDER / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        assert build["target"] in {"device", "edge", "cloud"}
        assert {"MACHINE", "UID", "GID", "FLOWER"} == set(build["args"])
        assert service["restart"] == "unless-stopped" and service["init"] is True
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service and "ports" not in service, f"{name} is exposed"
        for target, entry in mounted(service).items():
            assert entry["read_only"] is True
            # Otherwise Docker makes an empty folder, as root, of what is not there.
            if "/certs/" in entry["source"]:
                assert entry["bind"] == {"create_host_path": False}, target


def test_a_private_key_is_seen_by_its_owner_alone() -> None:
    services = merged("compose.yaml", "compose.chain.yaml")
    seen = {
        name: {Path(entry["source"]).name for entry in mounted(service).values() if PRIVATE.search(entry["source"])}
        for name, service in services.items()
    }
    assert seen == {
        "edge": {"server.key", "edge.token"},
        "cloud": {"server.key", "edge.token"},
        "device-0": {"supernode-0.key"},
        "device-1": {"supernode-1.key"},
    }
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "ca.key" not in text
        assert not re.search(r"(?i)(password|secret|token)\s*[:=]\s*['\"]?[0-9a-z]{16}", text)


def test_gpus_are_an_option() -> None:
    for names, service in ((("compose.gpu.yaml",), "edge"), (("compose.gpu-chain.yaml",), "cloud")):
        extra = content(*names)["services"]
        assert set(extra) == {service}
        (device,) = extra[service]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
        # Nothing, as in .env, is pip's own index: what install.sh takes by itself for CUDA, and for CUDA alone.
        assert extra[service]["build"]["args"] == {"MACHINE": "cuda", "TORCH_INDEX_URL": "${TORCH_INDEX_URL:-}"}
    for service in merged("compose.yaml", "compose.chain.yaml").values():
        assert "deploy" not in service and "runtime" not in service


def test_a_jetson_reaches_its_gpu_as_a_user() -> None:
    device = content("compose.jetson.yaml")["services"]["device"]
    assert device["runtime"] == "nvidia" and len(device["group_add"]) == 2
    assert device["environment"]["NVIDIA_VISIBLE_DEVICES"] == "all"


def test_everything_that_has_to_be_said_is_in_the_example() -> None:
    example = set(re.findall(r"^([A-Z_]+)=", (FOLDER / "example.env").read_text(), flags=re.MULTILINE))
    asked = {name for path in FILES for name in re.findall(r"\$\{([A-Z_]+)", path.read_text())}
    assert asked == example


def test_the_services_meet() -> None:
    """Addresses, ports and files of one service are those of the others."""
    services = merged("compose.yaml", "compose.chain.yaml")
    edge = services["edge"]["command"]
    assert "--host=0.0.0.0" in edge and "--port=8000" in edge
    for number in (0, 1):
        command = services[f"device-{number}"]["command"]
        assert "--superlink=edge:8000" in command
        (config,) = [word for word in command if word.startswith("--node-config=")]
        assert f"partition-id={number} num-partitions=2" in config
        files = {word.partition("=")[2] for word in command if "=/certs/" in word}
        assert files <= set(mounted(services[f"device-{number}"]))
    assert {word.partition("=")[2] for word in edge if "=/certs/" in word} <= set(mounted(services["edge"]))
    flower = (FOLDER / "flower-config.toml").read_text()
    assert 'address = "edge:8000"' in flower and 'root-certificates = "/certs/ca.crt"' in flower


@pytest.mark.slow
def test_the_clouds_configuration_can_be_read(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the cloud needs it")
    from flwr_splitkd.tiers.cloud.config import read_cloud_config

    text = (FOLDER / "cloud.example.toml").read_text(encoding="utf-8")
    (tmp_path / "edge.token").write_text("e" * 64)
    for name in ("ca.crt", "server.pem", "server.key"):
        (tmp_path / name).write_text("pem")
    text = text.replace('"/config/', f'"{tmp_path}/').replace('"/certs/', f'"{tmp_path}/')
    (tmp_path / "cloud.toml").write_text(text)
    setup = read_cloud_config(tmp_path / "cloud.toml")
    assert setup.data_address == "0.0.0.0:9096" and setup.advertised_address == "cloud" and setup.tls is not None
    assert str(setup.state_folder) == "/data/state"
    services = merged("compose.yaml", "compose.chain.yaml")
    wanted = {
        match for match in re.findall(r'"(/(?:config|certs)/[^"]+)"', (FOLDER / "cloud.example.toml").read_text())
    }
    assert wanted <= set(mounted(services["cloud"]))


def test_docker_reads_them(tmp_path: Path) -> None:
    """Where there is a Compose; it needs no daemon to merge files and fill in variables."""
    try:
        version = subprocess.run(["docker", "compose", "version"], capture_output=True, text=True, timeout=30)
    except OSError:
        pytest.skip("docker is not on this machine")
    if version.returncode != 0:
        pytest.skip("docker has no compose here")
    files = ["-f", str(FOLDER / "compose.yaml"), "-f", str(FOLDER / "compose.chain.yaml")]
    done = subprocess.run(["docker", "compose", *files, "config", "-q"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
