"""The sizing tables of the operations page are those that the script makes, and say what the cost model says."""

from __future__ import annotations

import re

import pytest

import sizing_table
from flwr_splitkd.costs import RUNTIME_BYTES, Workload, device_memory, named_shape


def test_the_page_has_what_the_script_prints() -> None:
    page = sizing_table.PAGE.read_text(encoding="utf-8")
    assert page == sizing_table.page_with(page, sizing_table.tables()), "run scripts/sizing_table.py --write"


def test_a_page_without_the_place_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks"):
        sizing_table.page_with("# A page\n", "tables")


def test_lora_counted_by_hand() -> None:
    """Llama-3.2-1B: queries and output 2048 x 2048, keys and values 2048 x 512, three matrices of 2048 x 8192."""
    shape = named_shape("llama-3.2-1b")
    by_hand = 16 * (2 * (2048 + 2048) + 2 * (2048 + 512) + 3 * (2048 + 8192))
    assert sizing_table.lora_share(shape, 7)[0] * shape.block_parameters[0] == pytest.approx(by_hand)


def test_lora_counted_by_hand_in_gpt2() -> None:
    """768 x 2304, 768 x 768, 768 x 3072, 3072 x 768."""
    shape = named_shape("gpt2")
    by_hand = 16 * ((768 + 2304) + (768 + 768) + (768 + 3072) + (3072 + 768))
    assert sizing_table.lora_share(shape, 4)[0] * shape.block_parameters[0] == pytest.approx(by_hand)


def cells(start: str) -> list[str]:
    (line,) = [line for line in sizing_table.tables().splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_of_memory() -> None:
    workload = Workload(
        batch_size=4, sequence_length=512, num_batches=1, causal=True, runtime_bytes=RUNTIME_BYTES, moments=2
    )
    peak = device_memory(named_shape("llama-3.2-1b"), named_shape("llama-3.1-8b"), workload).peak
    row = cells("| llama-3.2-1b < llama-3.1-8b | all | float32 |")
    assert [float(cell.split()[0]) for cell in row[3:]] == [round(peak[cut - 1] / 1e9, 1) for cut in (1, 4, 8)]
    assert row[3].endswith("Orin Nano 8 GB") and row[5].endswith("AGX Orin 64 GB")


def test_a_row_of_the_link_by_hand() -> None:
    """2048 tokens of 2048 and 4096 values of 2 bytes and 8 bytes of labels up; 2048 values of 2 bytes down."""
    up, down = 2048 * ((2048 + 4096) * 2 + 8) / 1e6, 2048 * 2048 * 2 / 1e6
    row = cells("| llama-3.2-1b < llama-3.1-8b | bfloat16 |")
    assert row[2:4] == [f"{up:.1f}", f"{down:.1f}"]
    assert row[5] == f"{8 * (up + down) / 200:.2f}"


def test_a_row_of_the_hand_over_by_hand() -> None:
    """Four blocks with two moments each: 1,460 MB of bfloat16, as docs/explanation/data-plane.md has it in gigabytes."""
    block = 2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192 + 2 * 2048
    row = cells("| llama-3.2-1b < llama-3.1-8b | all, bfloat16 |")
    assert row[3].startswith(f"{4 * block * 2 * 3 / 1e6:,.0f} MB: ")
    assert re.fullmatch(r"[\d,.]+ MB: [\d,.]+ / [\d,.]+ / [\d,.]+ s", row[3])
