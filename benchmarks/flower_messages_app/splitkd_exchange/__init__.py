"""The exchange of a split training step by Flower messages, which `versus_flower_messages.py` times."""
