from __future__ import annotations

from pathlib import Path

import pytest

from flwr_splitkd.errors import StoreError
from flwr_splitkd.strategies.chain.progress import ChainProgress


def test_positions_follow_the_names_by_value_and_stay() -> None:
    progress = ChainProgress(run="7")
    assert progress.place(["10", "9", "b", "a"]) == {"10": 1, "9": 0, "b": 3, "a": 2}
    assert progress.place(["b", "8", "9"]) == {"b": 3, "8": 4, "9": 0}


def test_it_survives_the_process(tmp_path: Path) -> None:
    progress = ChainProgress(run="7", server_round=3)
    progress.place(["0", "1"])
    progress.save(tmp_path)
    assert ChainProgress.load(tmp_path) == progress


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"run": "7", "server_round": "x", "positions": {}}'])
def test_what_is_not_its_file_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "progress.json").write_text(content)
    with pytest.raises(StoreError, match=r"progress.json cannot be read: .* start a new run"):
        ChainProgress.load(tmp_path)
