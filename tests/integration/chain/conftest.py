"""The processes that all tests of the chain share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from chain_processes import Site, site_at


# Around each test: a fixture of the package would give the threads back in the midst of the next one's set-up.
@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site_at(tmp_path_factory.mktemp("site")) as made:
        yield made
