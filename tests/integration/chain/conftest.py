"""What all tests of the chain share: the processes of a site, and one thread.

Torch is imported in the fixtures: where there is none, none of these tests is collected, but this file is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from chain_processes import Site


# Around each test: a fixture of the package would give the threads back in the midst of the next one's set-up.
@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from chain_processes import site_at

    with site_at(tmp_path_factory.mktemp("site")) as made:
        yield made
