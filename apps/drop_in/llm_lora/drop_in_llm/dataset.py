"""Text of a device, and text that nobody trains on."""

from drop_in_llm.models import TOKENIZER
from flwr_splitkd.data import DataConfig, load_heldout, load_partition, make_loader

TEXT = DataConfig(sequence_length=64)


def load_data(partition_id, num_partitions, batch_size):
    """Training batches of one device."""
    blocks = load_partition(TEXT, TOKENIZER, partition_id=partition_id, num_partitions=num_partitions)
    return make_loader(blocks, batch_size, shuffle=True, max_batches=20)


def load_test_data():
    """Held-out batches."""
    return make_loader(load_heldout(TEXT, TOKENIZER).spread(64), 32)
