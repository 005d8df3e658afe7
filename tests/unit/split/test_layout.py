from __future__ import annotations

import pytest

from flwr_splitkd.errors import CutError
from flwr_splitkd.split import Layout

LAYOUT = Layout(
    "model.layers",
    tuple(f"model.layers.{i}" for i in range(16)),
    stem=("model.embed_tokens.weight",),
    head=("model.norm.weight", "lm_head.weight"),
)


def test_unit_of_tells_blocks_with_a_common_prefix_apart() -> None:
    assert LAYOUT.unit_of("model.layers.1.mlp.weight") == "blocks.1"
    assert LAYOUT.unit_of("model.layers.11.mlp.weight") == "blocks.11"
    assert LAYOUT.unit_of("model.embed_tokens.weight") == "stem"
    assert LAYOUT.unit_of("lm_head.weight") == "head"


def test_unit_of_an_unknown_name() -> None:
    with pytest.raises(CutError, match=r"`model\.pooler\.weight` is not in this layout"):
        LAYOUT.unit_of("model.pooler.weight")


def test_units_of_a_cut_cover_the_model_once() -> None:
    device, edge = LAYOUT.units(4)
    assert device == ("stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3")
    assert edge == (*(f"blocks.{i}" for i in range(4, 16)), "head")


def test_shared_unit_is_on_both_sides() -> None:
    device, edge = Layout("h", ("h.0", "h.1"), shared=("wte.weight",)).units(1)
    assert device == ("stem", "shared", "blocks.0")
    assert edge == ("shared", "blocks.1", "head")


@pytest.mark.parametrize("cut", [16, 17])
def test_cut_too_high(cut: int) -> None:
    with pytest.raises(CutError, match=rf"`cut` is {cut}; expected 1\.\.15 for a 16-layer model\. Lower `cut`"):
        LAYOUT.check_cut(cut)


@pytest.mark.parametrize("cut", [0, -3, True, 2.5, "4"])
def test_cut_too_low_or_no_integer(cut: object) -> None:
    with pytest.raises(CutError, match=rf"`cut` is {cut!r}; expected 1\.\.15"):
        LAYOUT.check_cut(cut)  # type: ignore[arg-type]


def test_a_name_with_two_owners() -> None:
    with pytest.raises(CutError, match=r"`wte` is listed under both 'stem' and 'head'"):
        Layout("h", ("h.0", "h.1"), stem=("wte",), head=("wte",))
