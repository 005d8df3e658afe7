"""The page's tables of a run of the chain: its epochs, and its devices by round."""

from __future__ import annotations

from flwr_splitkd.report.chain_lines import DeviceLine, EpochLine
from flwr_splitkd.report.elements import failed_row, headline, records, row
from flwr_splitkd.report.load import RunData
from flwr_splitkd.report.words import mebibytes, number

__all__ = ["chain_tables"]

_DEVICE = (
    *("Round", "Device", "Mode", "Split point", "Steps", "Missed", "Loss", "Up, MiB", "Layers up, MiB", "Down, MiB"),
    *("Layers down, MiB", "Device, s", "Edge, s", "Cloud, s", "Seconds", "Resumed"),
)


def chain_tables(run: RunData, *, named: bool) -> str:
    """Both tables, each if the run has lines for it; without columns that would be empty."""
    made = ""
    if run.epochs:
        asked = any(epoch.reference_loss is not None for epoch in run.epochs)
        rows = (row(_epoch(epoch, reference=asked)) for epoch in run.epochs)
        made += records(headline("Epochs", run, named), _epoch_heads(reference=asked), rows)
    if run.devices:
        left = any(one.left for one in run.devices)
        heads = [*_DEVICE, *["Left"] * left]
        rows = (_device(one, len(heads), left=left) for one in run.devices)
        made += records(headline("Devices by round", run, named), heads, rows)
    return made


def _epoch_heads(*, reference: bool) -> list[str]:
    heads = ["Round", "Epoch", "Iterations", "Loss", *["Without the encoder"] * reference, "Missed", "Seconds"]
    return [*heads, "Seconds an iteration", "Module's steps", "Learning rate", "Gradient norm"]


def _epoch(epoch: EpochLine, *, reference: bool) -> list[str]:
    return [
        *(str(epoch.server_round), str(epoch.epoch), str(epoch.num_iterations), number(epoch.loss)),
        *[number(epoch.reference_loss)] * reference,
        *(number(epoch.num_missed), number(epoch.seconds), number(epoch.iteration_s), number(epoch.module_step)),
        *(number(epoch.learning_rate), number(epoch.grad_norm)),
    ]


def _device(one: DeviceLine, columns: int, *, left: bool) -> str:
    cells = [str(one.server_round), one.device, one.mode]
    if not one.completed:
        return failed_row(cells, f"left out: {one.error}", columns)
    cells += [number(one.split_point), number(one.num_steps), number(one.num_missed), number(one.loss)]
    cells += [mebibytes(one.uplink_bytes), mebibytes(one.uplink_handover_bytes)]
    cells += [mebibytes(one.downlink_bytes), mebibytes(one.downlink_handover_bytes)]
    cells += [number(one.device_s), number(one.edge_s), number(one.cloud_s), number(one.duration_s)]
    cells.append(number(one.num_resumed))
    return row([*cells, *[one.left or "–"] * left])
