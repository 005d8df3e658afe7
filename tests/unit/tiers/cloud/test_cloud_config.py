from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.models import SerialAdapterConfig
from flwr_splitkd.tiers.cloud import config as cloud_config
from flwr_splitkd.tiers.cloud.config import read_cloud_config
from import_graph import ROOT

EDGE = '[edges.north]\ntoken-env = "NORTH"\n'
MINIMAL = '[llm]\nname = "llm"\n[tasks.qa]\nslm-width = 24\n' + EDGE


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORTH", "n" * 32)


def written(folder: Path, text: str) -> Path:
    path = folder / "cloud.toml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_cloud_config(written(folder, text))
    return str(caught.value)


def test_the_least_that_it_takes(tmp_path: Path) -> None:
    setup = read_cloud_config(written(tmp_path, MINIMAL))
    assert setup.data_address == "127.0.0.1:9096" and setup.advertised_address is None and setup.tls is None
    assert setup.state_folder == tmp_path / "cloud-state" and setup.compute_device is None
    assert setup.edges == {"north": b"n" * 32} and setup.task_edges == {}
    assert setup.tasks["qa"].peft == SerialAdapterConfig(bottleneck=64)
    assert setup.tasks["qa"].max_grad_norm is None and setup.tasks["qa"].lr_schedule(0) == 1


def test_what_the_howto_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has every key, and can be read."""
    monkeypatch.setenv("SOUTH_TOKEN", "s" * 64)
    (tmp_path / "north.token").write_text("n" * 64 + "\n")
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/how-to/cloud.md").read_text(), re.DOTALL)
    setup = read_cloud_config(written(tmp_path, example))
    assert setup.advertised_address == "cloud.example.com" and setup.tls is not None
    assert setup.tls.private_key == tmp_path / "certs" / "server.key"
    assert setup.edges == {"north": b"n" * 64, "south": b"s" * 64}
    assert setup.task_edges == {"summaries": frozenset({"south"})}
    assert setup.llm.options == {"dtype": "bfloat16"}  # type: ignore[attr-defined]
    assert setup.metrics is not None and setup.metrics.client_ca == tmp_path / "certs" / "ca.crt"
    lora = setup.tasks["summaries"].peft
    assert isinstance(lora, LoraConfig) and lora.target_modules == {"q_proj", "v_proj"} and lora.lora_dropout == 0.05

    shown = set(re.findall(r"^([a-z-]+) =", example, re.MULTILINE))
    names = ("_Cloud", "_Tls", "_Metrics", "_Edge", "_Task")
    kinds = [getattr(cloud_config, name) for name in names]
    known = {name.replace("_", "-") for kind in kinds for name in kind.__dataclass_fields__}
    assert known <= shown


def test_where_metrics_are(tmp_path: Path) -> None:
    assert read_cloud_config(written(tmp_path, MINIMAL)).metrics is None
    metrics = read_cloud_config(written(tmp_path, MINIMAL + "[metrics]\n")).metrics
    assert metrics is not None and (metrics.address, metrics.certificate) == ("127.0.0.1:9465", None)
    said = refused(tmp_path, MINIMAL + "[metrics]\naddress = 'here'\n")
    assert "[metrics] of" in said and "`metrics address` is 'here'; expected host:port" in said
    assert "`adress` is not a key of this table; did you mean `address`?" in refused(
        tmp_path, MINIMAL + "[metrics]\nadress = 'here'\n"
    )


def test_the_howto_names_the_defaults(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/how-to/cloud.md").read_text(), re.DOTALL)
    shown = cloud_config.tomllib.loads(example)
    tasks = {**shown["tasks"]["qa"], "rank": 16, "lora-alpha": 32}
    for kind, values in ((cloud_config._Cloud, shown), (cloud_config._Task, tasks)):
        for name, field in kind.__dataclass_fields__.items():
            told = values.get(name.replace("_", "-"), field.default)
            if name not in ("address", "advertised_address", "slm_width"):  # which say so
                assert told == field.default, name


def test_every_mistake_of_every_table_at_once(tmp_path: Path) -> None:
    text = (
        "adress = 'x'\ncommit-every-steps = 0\n"
        + MINIMAL
        + "[tasks.b]\nslm_width = 24\nmethod = 'prefix'\n[tls]\nkey = ''\n"
    )
    said = refused(tmp_path, text)
    for line in (
        "`adress` is not a key of a cloud; did you mean `address`?",
        "`commit-every-steps` is 0; expected at least 1",
        f"[tasks.b] of {tmp_path / 'cloud.toml'} has mistakes",
        "`slm_width` is not a key of this table; did you mean `slm-width`?",
        "`method` is 'prefix'; expected one of serial-adapter, lora",
        "`key` is not a key of this table",
    ):
        assert line in said


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (("slm-width = 24", ""), r"\[tasks.qa\] of .* lacks `slm-width`; expected the width of the edges' encoders"),
        (("slm-width = 24", "slm-width = 0"), "`slm-width` is 0; expected at least 1"),
        (("slm-width = 24", "slm-width = 24\nlora-dropout = 1.5"), "`lora-dropout` is 1.5; expected at most 1"),
        (
            ("slm-width = 24", "slm-width = 24\nedges = 'west'"),
            r"Task 'qa' is for the edges \['west'\]; expected .*\['north'\]",
        ),
        (('name = "llm"', ""), r"\[llm\] of .* has the keys \[\]; expected `name` among them"),
        (
            ('name = "llm"', 'name = "llm"\nquantization = {quant_method = "magic"}'),
            r"\[llm.quantization\] of .* cannot be used",
        ),
        (
            ('name = "llm"', 'name = "llm"\ntp_plan = "auto"'),
            r"\[llm\] of .*: `tp_plan` is 'auto'; expected none: .*device_map",
        ),
        (
            ('token-env = "NORTH"', ""),
            "names the token file '' and the variable ''; expected `token-file` or `token-env`",
        ),
        (
            ('token-env = "NORTH"', 'token-env = "NOBODY"'),
            r"`token-env` of \[edges.north\] is 'NOBODY', which is not set",
        ),
        (
            ('token-env = "NORTH"', 'token-file = "none"'),
            r"`token-file` of \[edges.north\] cannot be read: .*No such file",
        ),
        ((EDGE, ""), "The cloud has no edges; expected at least one"),
        (("[tasks.qa]\nslm-width = 24", ""), "The cloud has no tasks; expected at least one"),
        (("[tasks.qa]", '[tasks."../qa"]'), r"The cloud has '../qa' among its tasks; expected letters, digits"),
        (("[llm]", "llm = 3\n[x]"), "`llm` of .* is 3; expected a table"),
        (("[llm]", "[llm"), "cannot be read: .*See docs/how-to/cloud.md"),
        ((EDGE, EDGE + "[tls]\ncertificate = 'a'\n"), r"\[tls\] of .* lacks `private-key`; expected all three files"),
    ],
)
def test_mistakes(tmp_path: Path, change: tuple[str, str], pattern: str) -> None:
    assert change[0] in MINIMAL
    assert re.search(pattern, refused(tmp_path, MINIMAL.replace(*change)))


def test_short_secrets_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORTH", "hunter2")
    said = refused(tmp_path, MINIMAL)
    assert (
        "The token of edge 'north' has 7 bytes; expected at least 16. Make one with" in said and "hunter2" not in said
    )


def test_secrets_are_in_no_description(tmp_path: Path) -> None:
    assert "n" * 32 not in repr(read_cloud_config(written(tmp_path, MINIMAL)))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`--config` is .*none.toml', which cannot be read: .*See docs"):
        read_cloud_config(tmp_path / "none.toml")


@pytest.mark.parametrize(("key", "value", "seen"), [("warmup-steps", 4, [0.0, 0.25, 0.5, 0.75, 1.0, 1.0])])
def test_warmup(tmp_path: Path, key: str, value: Any, seen: list[float]) -> None:
    setup = read_cloud_config(written(tmp_path, MINIMAL.replace("slm-width = 24", f"slm-width = 24\n{key} = {value}")))
    assert [setup.tasks["qa"].lr_schedule(step) for step in range(6)] == seen
