"""Turns of one step on tiny models, or messages without a turn, which `scale.py` counts the cost of."""
