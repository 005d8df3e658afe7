"""`python -m flwr_splitkd` is `flwr-splitkd`."""

from __future__ import annotations

from flwr_splitkd.cli import main

if __name__ == "__main__":
    main()
