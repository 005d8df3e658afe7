"""The ServerApp."""

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from drop_in_llm.dataset import load_test_data
from drop_in_llm.models import get_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds and save the adapters."""
    model = get_model()
    arrays = ArrayRecord(get_peft_model_state_dict(model))

    strategy = FedAvg(fraction_evaluate=0.0)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        set_peft_model_state_dict(model, arrays.to_torch_state_dict())
        return MetricRecord({"loss": held_out_loss(model)})

    result = strategy.start(
        grid=grid,
        initial_arrays=arrays,
        num_rounds=context.run_config["num-server-rounds"],
        evaluate_fn=evaluate,
    )

    set_peft_model_state_dict(model, result.arrays.to_torch_state_dict())
    model.save_pretrained(context.run_config["output"])


@torch.no_grad()
def held_out_loss(model) -> float:
    """Mean loss of the held-out batches."""
    model.eval()
    losses = [model(**batch).loss.item() for batch in load_test_data()]
    return sum(losses) / len(losses)
