"""A Flower App that says who answered; it tests the run harness, not flwr_splitkd."""
