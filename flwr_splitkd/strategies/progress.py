"""Where a run stands: what each commit remembers, and where a resumed run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from flwr_splitkd.errors import StoreError

__all__ = ["Progress", "Unfinished"]


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A turn that was lost after a part of it was committed.

    Parameters
    ----------
    order_step
        Seeds the order of its data.
    done_steps
        Optimiser steps that are committed.
    """

    order_step: int
    done_steps: int


@dataclass(slots=True)
class Progress:
    """Who has had a turn and who has not, in the round that was begun last.

    Parameters
    ----------
    run
        Name of the run, the same after it was resumed: devices keep things under it.
    server_round
        The round, from 1; 0 before the first.
    round_done
        Whether the round is over, evaluation included.
    order
        Nodes that take a turn in the round.
    served
        Nodes that have had their turn in it, with the device's name.
    unfinished
        Nodes whose turn in it was lost half-way.
    next_order
        Nodes that take a turn in the next round, if they were chosen ahead of it.
    turns_taken
        Turns that each node has completed in the run.
    policies
        State of the policies that have one, by name; see `remember_policies`.
    """

    run: str
    server_round: int = 0
    round_done: bool = True
    order: list[int] = field(default_factory=list)
    served: dict[int, str] = field(default_factory=dict)
    unfinished: dict[int, Unfinished] = field(default_factory=dict)
    next_order: list[int] = field(default_factory=list)
    turns_taken: dict[int, int] = field(default_factory=dict)
    policies: dict[str, Any] = field(default_factory=dict)

    @property
    def num_turns(self) -> int:
        """Turns completed in the run."""
        return sum(self.turns_taken.values())

    @property
    def next_round(self) -> int:
        """The round to go on with."""
        return self.server_round + 1 if self.round_done else self.server_round

    def begin_round(self, server_round: int, order: Sequence[int]) -> None:
        """A round starts."""
        self.server_round, self.round_done, self.order = server_round, False, list(order)
        self.served, self.unfinished, self.next_order = {}, {}, []

    def order_of(self, server_round: int, online: Sequence[int], choose: Callable[[], list[int]]) -> list[int]:
        """Who is called in a round, in order; asks `choose` for a round that nobody was chosen for yet.

        In a round that was begun before the run was resumed these are who still has to take a turn. For the round after the one
        at work the choice is kept until it begins.
        """
        if server_round == self.server_round:
            left = [node_id for node_id in self.order if node_id not in self.served]
            # If none of them is there, SuperNodes were started again and have other ids now.
            is_known = not left or any(node_id in online for node_id in left)
            return [node_id for node_id in left if node_id in online] if is_known else choose()
        order = self.next_order if self.next_order and set(self.next_order) <= set(online) else choose()
        if self.round_done:
            self.begin_round(server_round, order)
        else:
            self.next_order = order
        return order

    def complete(self, node_id: int, name: str) -> None:
        """A node has had its turn."""
        self.served[node_id] = name
        self.unfinished.pop(node_id, None)
        self.turns_taken[node_id] = self.turns_taken.get(node_id, 0) + 1

    def had_turn(self, node_id: int, name: str) -> bool:
        """Whether a device has had its turn in this round, maybe as another node: a SuperNode that starts again is one."""
        return node_id in self.served or (node_id not in self.order and name in self.served.values())

    # ---- policies

    def remember_policies(self, policies: Mapping[str, Any]) -> None:
        """Take the state of every policy that has a ``state_dict``, such as that of a random generator."""
        self.policies = {
            name: policy.state_dict() for name, policy in policies.items() if hasattr(policy, "state_dict")
        }

    def restore_policies(self, policies: Mapping[str, Any]) -> None:
        """Give each policy its state back."""
        for name, state in self.policies.items():
            if hasattr(policies.get(name), "load_state_dict"):
                policies[name].load_state_dict(state)

    # ---- in a commit

    def to_json(self) -> dict[str, Any]:
        """As a commit remembers it."""
        return asdict(self)

    @classmethod
    def from_commit(cls, info: Mapping[str, Any], *, run: str) -> Progress:
        """Where the run stood when a commit was made; `run` is its name if no turn was committed yet.

        Raises
        ------
        StoreError
            If the commit does not say.
        """
        if "progress" not in info:
            return cls(run=run)
        try:
            fields = dict(info["progress"])
            progress = cls(
                **{
                    **fields,
                    # JSON has no keys but strings.
                    "served": {int(node): str(name) for node, name in fields["served"].items()},
                    "unfinished": {int(node): Unfinished(**part) for node, part in fields["unfinished"].items()},
                    "turns_taken": {int(node): int(turns) for node, turns in fields["turns_taken"].items()},
                }
            )
            for one in info.get("cluster", ()):  # the progress is that from before these turns
                progress.complete(int(one["node_id"]), str(one["device"]))
            if "node_id" in info:  # the progress is that from before this turn
                node_id = int(info["node_id"])
                if info["finished"]:
                    progress.complete(node_id, str(info["device"]))
                else:
                    progress.unfinished[node_id] = Unfinished(info["order_step"], info["done_steps"])
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"The last commit remembers {info.get('progress')!r}, which cannot be read: {error!r}. Resume with the "
                "version of flwr_splitkd that made it."
            ) from error
        return progress
