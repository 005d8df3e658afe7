"""Who decides on split points and shares: the paper's mechanisms, in a modelled cell."""

from __future__ import annotations

from flwr_splitkd.costs import ChainWorkload, ModelledCell, named_shape
from flwr_splitkd.schedulers.chain import mechanism
from flwr_splitkd.strategies.chain import ChainPlan
from scct_app.config import AppConfig


def chain_plan(config: AppConfig) -> ChainPlan | None:
    """Return the plan of a run; None if its split points are fixed by hand."""
    if config.mechanism == "none":
        return None
    split_points, allocation = mechanism(
        config.mechanism,  # type: ignore[arg-type]  # one of the allowed choices
        split_point=config.mechanism_split_point,
        literal=config.paper_algorithms,
        seed=config.seed,
    )
    return ChainPlan(
        workload=ChainWorkload.from_shape(
            named_shape(config.costed_slm),
            batch_size=config.batch_size,
            positions=config.max_positions,
            answer_positions=config.max_answer_tokens,
            iterations_per_epoch=config.iterations,
            epochs=config.epochs,
        ),
        cell=ModelledCell(edge_flops=config.cell_edge_flops, num_subcarriers=config.cell_subcarriers, seed=config.seed),
        split_points=split_points,
        allocation=allocation,
        seed=config.seed,
    )
