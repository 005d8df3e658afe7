"""SplitKDMod: an existing ClientApp takes part in split knowledge distillation, its own handlers as they are."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable
from torch import nn

from flwr_splitkd.clients.enrolment import enrol
from flwr_splitkd.clients.split_kd import SplitKDClient
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.records import Enrolment, TurnTicket

__all__ = ["SplitKDMod"]


class SplitKDMod:
    """A Flower mod that answers the messages of `SplitKD` and passes all others on.

    ::

        app = ClientApp(mods=[SplitKDMod(student=Net, data=my_batches)])

    The app's own ``@app.train()`` and ``@app.evaluate()`` still answer any other strategy, such as FedAvg: which method a run
    uses is up to the ServerApp.

    It comes last among the mods: those before it see its messages, those after it would not.

    Parameters
    ----------
    student
        As for `SplitKDClient`.
    data
        Called with the message and the context; returns this device's batches, as `SplitKDClient` takes them. For other data
        in evaluation look at ``msg.metadata.message_type``, which is ``"train"`` or ``"evaluate"``.
    **options
        The other parameters of `SplitKDClient`.
    """

    def __init__(
        self,
        *,
        student: Callable[[], nn.Module],
        data: Callable[[Message, Context], Iterable[Any]],
        **options: Any,
    ) -> None:
        self._student, self._data, self._options = student, data, options

    def __call__(self, msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Answer a message, or pass it on.

        Raises
        ------
        ConfigError
            If another mod follows, which these messages would never reach.
        SplitKDError
            Why the turn came to nothing; Flower reports it to the strategy.
        """
        if Enrolment.is_asked_in(msg.content):
            return enrol(msg, context)
        if not TurnTicket.is_in(msg.content):
            return call_next(msg, context)
        _refuse_to_bypass(call_next)
        client = SplitKDClient(student=self._student, data=self._data(msg, context), **self._options)
        evaluating = msg.metadata.message_type == MessageType.EVALUATE
        return client.evaluate(msg, context) if evaluating else client.train(msg, context)


def _refuse_to_bypass(call_next: ClientAppCallable) -> None:
    """A mod that comes after could be meant to protect this device, and would do nothing without a word."""
    # Flower keeps no list of mods that one could ask; it wraps each around the next, in a function of this name.
    if not getattr(call_next, "__qualname__", "").startswith("make_ffn."):
        return
    follower = inspect.getclosurevars(call_next).nonlocals.get("_mod")
    name = getattr(follower, "__name__", type(follower).__name__)
    raise ConfigError(
        f"The mod {name} comes after SplitKDMod; expected none, since it would not see what SplitKD sends and receives. "
        "Put it before SplitKDMod in ClientApp(mods=[...]), also if it is in @app.train(mods=[...]) or "
        "@app.evaluate(mods=[...]) now, or leave it out."
    )
