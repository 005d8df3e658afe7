"""Run configs: every mistake is reported, all at once, each with the offending value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest

from flwr_splitkd.config import parse_run_config, setting
from flwr_splitkd.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    learning_rate: float = setting(1e-3, above=0)
    num_rounds: int = setting(3, minimum=1, maximum=1000)
    kd_ratio: float = setting(0.5, minimum=0, maximum=1)
    codec: str = setting("none", choices=("none", "int8"))
    student: str = setting("")
    insecure: bool = setting(False)
    either: int | str = setting(1)


def test_defaults_without_a_config() -> None:
    assert parse_run_config(_Settings, {}) == _Settings()


def test_every_kind_is_taken_over() -> None:
    config = {
        "learning-rate": 0.25,
        "num-rounds": 7,
        "kd-ratio": 1,
        "codec": "int8",
        "student": "a/b",
        "insecure": True,
        "either": "all",
    }
    before = dict(config)
    got = parse_run_config(_Settings, config)
    assert got == _Settings(
        learning_rate=0.25, num_rounds=7, kd_ratio=1.0, codec="int8", student="a/b", insecure=True, either="all"
    )
    assert type(got.kd_ratio) is float  # an integer will do, and becomes one
    assert config == before


def test_all_mistakes_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_run_config(
            _Settings,
            {
                "learning_rate": 0.1,
                "lerning-rate": 0.1,
                "zebra": 9,
                "num-rounds": "three",
                "kd-ratio": 1.5,
                "codec": "gzip",
                "insecure": 1,
                "student": "fine",
            },
        )
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 7
    text = "\n".join(lines)
    assert "`learning_rate` is not a key of this app; did you mean `learning-rate`?" in text
    assert "`lerning-rate` is not a key of this app; did you mean `learning-rate`?" in text
    assert "`zebra` is not a key of this app; expected one of codec, either, insecure," in text
    assert "`num-rounds` is 'three'; expected int" in text
    assert "`kd-ratio` is 1.5; expected at most 1" in text
    assert "`codec` is 'gzip'; expected one of none, int8" in text
    assert "`insecure` is 1; expected bool" in text


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("learning-rate", 0.0, "`learning-rate` is 0.0; expected more than 0"),
        ("learning-rate", -1, "`learning-rate` is -1; expected more than 0"),
        ("learning-rate", math.nan, "`learning-rate` is nan; expected a finite number"),
        ("learning-rate", math.inf, "`learning-rate` is inf; expected a finite number"),
        ("learning-rate", True, "`learning-rate` is True; expected float"),
        ("num-rounds", 0, "`num-rounds` is 0; expected at least 1 and at most 1000"),
        ("num-rounds", 1001, "`num-rounds` is 1001; expected at most 1000"),
        ("num-rounds", 2.0, "`num-rounds` is 2.0; expected int"),
        ("num-rounds", False, "`num-rounds` is False; expected int"),
        ("kd-ratio", -0.5, "`kd-ratio` is -0.5; expected at least 0 and at most 1"),
        ("student", 5, "`student` is 5; expected str"),
        ("either", 2.5, "`either` is 2.5; expected int or str"),
    ],
)
def test_the_message_has_the_value_and_the_bound(key: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_run_config(_Settings, {key: value})
    assert expected in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [("num-rounds", 1), ("num-rounds", 1000), ("kd-ratio", 0), ("kd-ratio", 1)])
def test_bounds_are_inclusive(key: str, value: float) -> None:
    parse_run_config(_Settings, {key: value})
