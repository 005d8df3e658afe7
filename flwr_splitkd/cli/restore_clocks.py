"""`flwr-splitkd restore-clocks`: put back the clocks that killed runs have left set."""

from __future__ import annotations

import typer

from flwr_splitkd.errors import ClockError

__all__ = ["restore_clocks"]


def restore_clocks() -> None:
    """Put back the clocks of this machine's GPUs that a run with `set_frequency` had set when it was killed.

    The next run with `set_frequency` on the same GPU does so too. Clocks that a run sets at this moment, or another user's run
    has left set, are not touched.
    """
    from flwr_splitkd.tiers.edge.clock import clocks_folder, restore_left, setter_of

    done, failed = restore_left(setter_of)
    for line in done:
        typer.echo(line)
    if failed:
        raise ClockError(" ".join(failed))
    if not done:
        typer.echo(f"No clock was left set by a run that remembers its clocks in {clocks_folder()}.")
