"""A device says who it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from flwr_splitkd.clients import SplitKDMod, enrol, enrolment
from flwr_splitkd.costs import TABLE_II_DEVICES, to_json
from flwr_splitkd.errors import ConfigError, ProtocolError
from flwr_splitkd.records import Enrolment


@pytest.fixture(autouse=True)
def messages(monkeypatch: pytest.MonkeyPatch) -> None:
    # Flower's own cannot be made outside a run.
    monkeypatch.setattr(enrolment, "Message", lambda **fields: SimpleNamespace(**fields))


def _context(**node_config: Any) -> Any:
    return SimpleNamespace(node_config=node_config, node_id=99)


def _ask(content: RecordDict | None = None) -> Any:
    return SimpleNamespace(content=content or Enrolment.ask())


@pytest.mark.parametrize(
    ("node_config", "name"),
    [({"partition-id": 3, "device-name": "orin-1"}, "orin-1"), ({"partition-id": 3}, "3"), ({}, "99")],
)
def test_the_name_is_that_of_its_turns(node_config: dict[str, Any], name: str) -> None:
    reply = enrol(_ask(), _context(**node_config), num_examples=40, num_batches=10)
    assert Enrolment.from_content(reply.content) == Enrolment(name=name, num_examples=40, num_batches=10)


def test_a_profile_travels_with_it(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(to_json(TABLE_II_DEVICES[3])))
    reply = enrol(_ask(), _context(**{"partition-id": 0, "device-profile": str(path)}))
    assert json.loads(Enrolment.from_content(reply.content).profile)["name"] == TABLE_II_DEVICES[3].name


@pytest.mark.parametrize("text", [None, "{", '{"name": "x", "frequency_hz": -1, "cores": 1}', '{"speed": 3}'])
def test_a_profile_that_cannot_be_used_is_named(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "profile.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError):
        enrol(_ask(), _context(**{"device-profile": str(path)}))


def test_another_query_is_refused_and_another_reply_too() -> None:
    other = RecordDict({"config": ConfigRecord({"what": "else"})})
    with pytest.raises(ConfigError, match="expected one of SplitKD"):
        enrol(_ask(other), _context())
    with pytest.raises(ProtocolError, match="splitkd-enrol"):
        Enrolment.from_content(other)


@pytest.mark.parametrize("size", [-1, 1 << 60, float("inf")])
def test_sizes_that_cannot_be(size: float) -> None:
    content = Enrolment(name="x").to_content()
    content.config_records["splitkd-enrol"]["num-batches"] = size
    with pytest.raises(ProtocolError):
        Enrolment.from_content(content)


def test_a_name_goes_into_logs_and_files() -> None:
    content = Enrolment(name="orin\n\x1b[31m" + "x" * 5000).to_content()
    name = Enrolment.from_content(content).name
    assert name.isprintable() and name.startswith("orin[31mx") and len(name) == 64


def test_the_mod_answers_for_an_app() -> None:
    def untouched(*_: Any) -> Any:
        raise AssertionError("the app's own handler was called")

    mod = SplitKDMod(student=untouched, data=untouched)
    reply: Any = mod(_ask(), _context(**{"partition-id": 5}), untouched)
    assert Enrolment.from_content(reply.content).name == "5"
