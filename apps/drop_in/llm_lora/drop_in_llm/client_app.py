"""The ClientApp."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from drop_in_llm.dataset import load_data
from drop_in_llm.models import cosine_annealing, get_model

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    """Fine-tune the adapters on local data."""
    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]
    trainset = load_data(partition_id, num_partitions, context.run_config["batch-size"])

    model = get_model()
    set_peft_model_state_dict(model, msg.content["arrays"].to_torch_state_dict())
    lr = cosine_annealing(msg.content["config"]["server-round"], context.run_config["num-server-rounds"])
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=lr)

    model.train()
    total = 0.0
    for batch in trainset:
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()

    metrics = {"train_loss": total / len(trainset), "num-examples": len(trainset.dataset)}
    arrays = ArrayRecord(get_peft_model_state_dict(model))
    return Message(content=RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=msg)
