"""The edge: the demo's models and settings, the policies of this app."""

from __future__ import annotations

from pathlib import Path

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from split_kd_app import policies as demo
from split_kd_app import task
from split_kd_app.config import AppConfig, read_config

from flwr_splitkd import SplitKD
from flwr_splitkd.schedulers import CutPolicy, EpochsPolicy, FixedEpochs
from splitkd_planned.policies import Alternation, AlternationCut, AlternationEpochs, CutOfTurn

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; leave the metrics in the run's folder."""
    config = read_config(context.run_config)
    cut, epochs = _policies(config)
    strategy = SplitKD(
        student=task.student_builder(config.student),
        teacher=task.teacher_builder(config.teacher),
        cut=cut,
        local_epochs=epochs,
        selection=demo.selection(config),
        planner=demo.planner(config),
        train_embeddings=config.train_embeddings,
        max_grad_norm=config.max_grad_norm or None,
        data_address=config.data_address,
        advertised_address=config.advertised_address or None,
        insecure=config.insecure,
        run_folder=Path(config.run_dir) / str(context.run_id),
        callbacks=(),
    )
    strategy.start(grid=grid, initial_arrays=ArrayRecord(), num_rounds=config.num_server_rounds)


def _policies(config: AppConfig) -> tuple[CutPolicy, EpochsPolicy]:
    if config.cut_policy == "cycle":
        return CutOfTurn(config.cut_list), FixedEpochs(config.local_epochs)
    alternation = Alternation(max_delay_s=config.max_delay, max_epochs=config.local_epochs, codecs=config.codec_list)
    return AlternationCut(alternation), AlternationEpochs(alternation)
