"""A round of SCCT: call every device, serve all of them at once, close iteration after iteration, collect the replies."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from logging import INFO, WARNING
from typing import Any, Protocol

from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid

from flwr_splitkd.errors import ConfigError, CutError, NoDeviceError, SplitKDError, StoreError
from flwr_splitkd.faults import fault_of
from flwr_splitkd.store import RunFolder
from flwr_splitkd.strategies.callbacks import Callbacks
from flwr_splitkd.strategies.chain.calls import POLL_S, Called, Replies, why_not
from flwr_splitkd.strategies.chain.decisions import ChainPolicies, Decisions
from flwr_splitkd.strategies.chain.result import DeviceRecord, EpochRecord, SCCTResult
from flwr_splitkd.strategies.console import log
from flwr_splitkd.tiers.edge.chain import ChainEdge, ChainSettings, Closed, DevicePlan, Iterations

__all__ = ["ChainDirector", "ChainRounds"]

_REPLY_TIMEOUT_S = 60.0
_MIB = 1 << 20


class ChainDirector(ChainPolicies, Protocol):
    """What a round asks of its strategy."""

    connect_timeout_s: float
    min_train_nodes: int

    def called(self, grid: Grid, server_round: int, config: ConfigRecord, mode: str) -> list[Called]:
        """Make the messages of a round's devices, with open sessions."""


class ChainRounds:
    """The rounds of one run.

    Parameters
    ----------
    strategy
        Decides who is called, split points and shares.
    edge
        Serves the devices.
    settings
        Of the run.
    grid
        Carries Flower's messages.
    result, folder
        Where everything is recorded.
    callbacks
        Told of epochs, and of devices when their round is over.
    timeout_s
        Bound on the wait for Flower's replies at a round's end.
    steps
        Of each device's encoder by its name, as of the last round that it was in; written here.
    """

    def __init__(
        self,
        strategy: ChainDirector,
        edge: ChainEdge,
        settings: ChainSettings,
        grid: Grid,
        result: SCCTResult,
        folder: RunFolder,
        callbacks: Callbacks,
        timeout_s: float,
        steps: dict[str, int],
    ) -> None:
        self._strategy, self._edge, self._settings, self._grid = strategy, edge, settings, grid
        self._result, self._folder, self._callbacks = result, folder, callbacks
        self._reply_timeout_s = min(timeout_s, _REPLY_TIMEOUT_S)
        self._steps = steps
        self._lock = threading.Lock()  # guards steps and files
        self._decisions = Decisions(strategy, edge, self._note)

    def train(self, server_round: int, config: ConfigRecord) -> list[Message]:
        """Serve a round; return Flower's replies.

        Raises
        ------
        NoDeviceError
            If fewer devices than `min_train_nodes` took part.
        SplitKDError
            If the cloud is lost, or the settings cannot be used.
        """
        called = self._called(server_round, config, "train")
        iterations = self._edge.iterations([one.position for one in called])
        self._begin(called, server_round, iterations)
        watcher = Replies(self._grid, called)
        watcher.start()
        try:
            num_closed = self._run_epochs(server_round, iterations, called)
            iterations.end()
        except BaseException as error:
            iterations.end(error)
            self._send_away(called, error)
            raise
        finally:
            self._finish(called)
            replies = watcher.finish(self._reply_timeout_s)
        self._decisions.end_round(server_round)
        self._check_enough(called, num_closed, server_round)
        return replies

    def evaluate(self, server_round: int, config: ConfigRecord) -> list[Message]:
        """Have the devices evaluate the chain on their data; return Flower's replies."""
        called = self._called(server_round, config, "evaluate")
        if not called:
            return []
        self._begin(called, server_round, None)
        watcher = Replies(self._grid, called)
        watcher.start()
        self._finish(called)
        self._raise_fatal(called)
        return watcher.finish(self._reply_timeout_s)

    # ---- the round's thread

    def _called(self, server_round: int, config: ConfigRecord, mode: str) -> list[Called]:
        """The round's devices with their split points, decided for all of them before the first has come (section III.A)."""
        called = self._strategy.called(self._grid, server_round, config, mode)
        self._decisions.begin_round(called, server_round, training=mode == "train")
        return called

    def _begin(self, called: Sequence[Called], server_round: int, iterations: Iterations | None) -> None:
        """Call the devices, each with a thread that serves it."""
        pushed = list(self._grid.push_messages([one.message for one in called]))
        for one, message_id in zip(called, pushed, strict=False):
            one.message_id = message_id or ""
        for one in called:
            one.thread = threading.Thread(
                target=self._take_part,
                args=(one, server_round, iterations),
                name=f"splitkd-device-{one.name}",
                daemon=True,
            )
            one.thread.start()

    def _run_epochs(self, server_round: int, iterations: Iterations, called: Sequence[Called]) -> int:
        """Close the round's iterations; how many there were (R, T and J of the paper, section III.A)."""
        num_closed = 0
        for epoch in range(1, self._settings.num_epochs + 1):
            self._decisions.begin_epoch(server_round, epoch)
            closed: list[Closed] = []
            for _ in range(self._settings.num_iterations):
                one = iterations.close_next()
                self._raise_fatal(called)
                if one is None:
                    log(WARNING, "Round %d, epoch %d: no device is left", server_round, epoch)
                    break
                closed.append(one)
            if closed:
                self._record_epoch(server_round, epoch, closed)
            num_closed += len(closed)
            if len(closed) < self._settings.num_iterations:
                break
        return num_closed

    def _record_epoch(self, server_round: int, epoch: int, closed: Sequence[Closed]) -> None:
        answers = [answer for one in closed for answer in one.answers.values()]
        tokens = max(sum(answer.num_tokens for answer in answers), 1)
        references = [answer for answer in answers if answer.reference_loss is not None]
        stepped = closed[-1].stepped
        record = EpochRecord(
            server_round=server_round,
            epoch=epoch,
            num_iterations=len(closed),
            loss=sum(answer.loss * answer.num_tokens for answer in answers) / tokens,
            reference_loss=(
                sum((answer.reference_loss or 0.0) * answer.num_tokens for answer in references) / tokens
                if references
                else None
            ),
            seconds=sum(one.seconds for one in closed),
            num_missed=sum(len(one.missed) for one in closed),
            module_step=stepped.step + 1,
            learning_rate=stepped.learning_rate,
            grad_norm=stepped.grad_norm,
            modelled=self._decisions.end_epoch([one.seconds for one in closed]),
        )
        self._result.epochs.append(record)
        self._note(record.to_json())
        self._callbacks.tell("on_epoch", record)
        log(
            INFO,
            "\tround %d epoch %d of %d: loss %.4f over %d iterations of %d devices, %.2f s an iteration%s%s",
            server_round,
            epoch,
            self._settings.num_epochs,
            record.loss,
            record.num_iterations,
            max(len(one.answers) for one in closed),
            record.seconds / record.num_iterations,
            f", {record.num_missed} missed" if record.num_missed else "",
            f", {record.modelled.word} {record.modelled.iteration_s:.3g} s" if record.modelled else "",
        )

    def _send_away(self, called: Sequence[Called], error: BaseException) -> None:
        """End every device's stream, so that nobody waits for a round that has failed."""
        for one in called:
            self._edge.dismiss(one.session, f"the round failed: {type(error).__name__}: {error}")

    def _finish(self, called: Sequence[Called]) -> None:
        for one in called:
            if one.thread is not None:
                one.thread.join()
        # Only now, so that callbacks hear everything from this thread.
        for one in called:
            if one.record is not None:
                self._callbacks.tell("on_device", one.record)

    def _raise_fatal(self, called: Sequence[Called]) -> None:
        """What is not a device's fault ends the run: the others would meet the same."""
        for one in called:
            if one.fatal is not None:
                raise one.fatal

    def _check_enough(self, called: Sequence[Called], num_closed: int, server_round: int) -> None:
        self._raise_fatal(called)
        took_part = sum(one.record is not None and one.record.outcome is not None for one in called)
        minimum = max(self._strategy.min_train_nodes, 1)
        if took_part >= minimum and num_closed:
            return
        reasons = "; ".join(f"{one.name}: {one.record.error}" for one in called if one.record and one.record.error)
        raise NoDeviceError(
            f"{took_part} of {len(called)} devices took part in round {server_round}, in {num_closed} iterations; expected at "
            f"least {minimum} in at least 1. {reasons}"
        )

    # ---- a device's thread

    def _take_part(self, one: Called, server_round: int, iterations: Iterations | None) -> None:
        mode = "evaluate" if iterations is None else "train"
        record = partial(DeviceRecord, server_round=server_round, node_id=one.node_id, device=one.name, mode=mode)
        try:
            self._wait_connected(one, iterations)
            self._decisions.meet(one, server_round, training=iterations is not None)
            self._check_encoder(one)
            plan = DevicePlan(
                position=one.position,
                server_round=server_round,
                split_point=one.split_point,
                training=iterations is not None,
            )
            outcome = self._edge.serve(one.session, plan, iterations, one.meter)
            one.record = record(outcome=outcome)
            if iterations is not None and one.session.hello is not None:
                with self._lock:
                    self._steps[one.name] = one.session.hello.next_step + outcome.num_steps
        except BaseException as error:
            known = isinstance(error, SplitKDError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            one.record = record(error=reason, fault=fault_of(error))
            # Raised on the round's thread: the other devices would meet the same.
            if not known or isinstance(error, ConfigError | CutError | StoreError):
                one.fatal = error
            self._edge.dismiss(one.session, reason)
        finally:
            if iterations is not None:
                iterations.leave(one.position)
        self._record(one.record)

    def _wait_connected(self, one: Called, iterations: Iterations | None) -> None:
        """Wait until a device has come; after a while the others go on without it, but it may still join.

        Raises
        ------
        NoDeviceError
            If it does not come, and why.
        """
        deadline_s = time.monotonic() + self._strategy.connect_timeout_s
        waited_for = True
        while not one.session.connected:
            with self._edge.server.changed:
                self._edge.server.changed.wait(POLL_S)
            if one.reply is not None and not one.session.connected:
                raise NoDeviceError(why_not(one.reply))
            if not one.message_id:
                raise NoDeviceError("Flower did not take the message for it; the node may have left")
            if waited_for and time.monotonic() > deadline_s:
                waited_for = False
                self._check_actors(one)
                log(WARNING, "\tdevice %s has not connected yet; the others go on", one.name)
                if iterations is not None:
                    iterations.leave(one.position)
            over = not waited_for if iterations is None else iterations.over
            if over:
                when = "before the round was over" if waited_for else f"within {self._strategy.connect_timeout_s:g} s"
                raise NoDeviceError(
                    f"it did not connect {when}. All devices of a round work at the same time: in a simulation each needs an "
                    "actor, so lower `client-resources.num-cpus` or raise the backend's CPUs; in a deployment check its "
                    "SuperNode and `advertised_address`"
                )
        if not waited_for and iterations is not None:
            iterations.join(one.position)

    def _check_actors(self, one: Called) -> None:
        """In a simulation a device that does not come waits for an actor, which those who wait for it have.

        Raises
        ------
        ConfigError
            If this is one; the message says what to set.
        """
        # Flower's grid for simulations has no other mark.
        if type(self._grid).__name__ != "InMemoryGrid":
            return
        raise ConfigError(
            f"Device {one.name} got no actor of the simulation within {self._strategy.connect_timeout_s:g} s; expected one for "
            "each device of a round, since all work at the same time. Give the simulation as many CPUs as devices "
            "(`options.backend.init-args.num-cpus`, or `flwr federation simulation-config --init-args-num-cpus`), set fewer "
            "aside for each (`client-resources.num-cpus`), or lower `fraction_train`."
        )

    def _check_encoder(self, one: Called) -> None:
        """Warn of a device that comes with another encoder than it left with."""
        with self._lock:
            known = self._steps.get(one.name)
        steps = one.session.hello.next_step if one.session.hello is not None else 0
        if known is not None and steps != known:
            log(
                WARNING,
                "\tdevice %s comes with an encoder of %d steps; in this run it has taken %d. Was its folder deleted, or does "
                "another device have its name?",
                one.name,
                steps,
                known,
            )

    def _note(self, line: Mapping[str, Any]) -> None:
        with self._lock:
            self._folder.append_metrics(line)

    def _record(self, record: DeviceRecord) -> None:
        self._result.devices.append(record)
        self._note(record.to_json())
        outcome = record.outcome
        if outcome is None:
            log(WARNING, "\tround %d: device %s was left out: %s", record.server_round, record.device, record.error)
            return
        log(
            INFO,
            "\tround %d: device %s, split point %d, %d steps, loss %.4f, %.1f MiB up (%.1f of them layers), %.1f MiB down "
            "(%.1f), %.1f s%s%s",
            record.server_round,
            record.device,
            outcome.split_point,
            outcome.num_steps,
            outcome.loss,
            outcome.uplink_bytes / _MIB,
            outcome.uplink_handover_bytes / _MIB,
            outcome.downlink_bytes / _MIB,
            outcome.downlink_handover_bytes / _MIB,
            outcome.duration_s,
            f", missed {outcome.num_missed} iterations" if outcome.num_missed and not outcome.left else "",
            f", left: {outcome.left}" if outcome.left else "",
        )
