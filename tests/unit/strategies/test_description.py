from __future__ import annotations

from functools import partial

from flwr_splitkd.strategies.description import describe
from flwr_splitkd.tiers.optimizer import warmup_schedule


def test_a_schedule_is_described_alike_every_time() -> None:
    first, second = (describe(warmup_schedule("linear", num_warmup_steps=3, num_training_steps=9)) for _ in range(2))
    assert first == second and "0x" not in str(first)
    assert first != describe(warmup_schedule("linear", num_warmup_steps=4, num_training_steps=9))


def test_a_partial_function_says_what_it_is_given() -> None:
    assert describe(partial(int, "7", base=8)) == {"function": "builtins.int", "base": 8, "arguments": ["7"]}


def test_a_set_is_described_in_one_order() -> None:
    """Its own is another one from process to process, and after a walk through JSON."""
    names = [f"{letter}_proj" for letter in "qkvo"]
    assert describe({"modules": {*names}}) == describe({"modules": frozenset(reversed(names))})
    assert describe({*names}) == sorted(names)
