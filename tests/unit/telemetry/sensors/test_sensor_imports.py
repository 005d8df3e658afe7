"""Sensors can be read wherever Python is: by a doctor, on a device without torch, beside any version of anything."""

from __future__ import annotations

import sys

import pytest

from import_graph import PACKAGE, loaded_by, modules

SENSORS = {name: path for name, path in modules().items() if f"{name}.".startswith(f"{PACKAGE}.telemetry.sensors.")}


@pytest.mark.parametrize("module", sorted(SENSORS))
def test_sensors_load_the_standard_library_alone(module: str) -> None:
    loaded = {name.partition(".")[0] for name in loaded_by(SENSORS[module])}
    assert "dataclasses" in loaded
    assert loaded - sys.stdlib_module_names - {PACKAGE} == set()
