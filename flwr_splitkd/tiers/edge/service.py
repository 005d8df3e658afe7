"""The edge as a strategy sees it: open it, hand out tickets, serve turns one after another, close it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import nn

from flwr_splitkd.errors import PeerLostError, SplitKDError
from flwr_splitkd.telemetry.sensors import EnergyMeter
from flwr_splitkd.tiers.edge.batching import Batching
from flwr_splitkd.tiers.edge.clock import ServerClock, TurnClock
from flwr_splitkd.tiers.edge.cluster import Member, run_cluster
from flwr_splitkd.tiers.edge.objective import Objective
from flwr_splitkd.tiers.edge.pace import Paces
from flwr_splitkd.tiers.edge.plan import TurnMode, TurnOutcome, TurnPlan, TurnSettings
from flwr_splitkd.tiers.edge.rehearsal import Rehearsals
from flwr_splitkd.tiers.edge.student import EdgeStudent
from flwr_splitkd.tiers.edge.teacher_cache import TeacherCache
from flwr_splitkd.tiers.edge.turn import run_turn
from flwr_splitkd.tiers.fingerprint import fingerprint_to_wire
from flwr_splitkd.wire.codec import CodecName, codec_code
from flwr_splitkd.wire.credentials import new_ticket
from flwr_splitkd.wire.server import DataPlaneServer, Session

__all__ = ["ClusterTurn", "EdgeService"]

_Served = TypeVar("_Served")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClusterTurn:
    """One device's turn in a cluster: a connected session, what was decided, and who it is in the commit."""

    session: Session
    cut: int
    local_epochs: int
    info: Mapping[str, Any]
    codec: CodecName | None = None
    frequency_hz: float | None = None


class EdgeService:
    """A listening data plane with the models behind it.

    Parameters
    ----------
    server
        Bound, not yet started.
    student, objective, settings
        What turns are served with.
    ticket_lifetime_s
        Seconds from the making of a ticket to its end.
    codecs
        Those that turns may ask for beside those of `settings`; a device that lacks one is refused.
    cache
        Where the teacher's outcomes are kept; None to keep none.
    teach_waiting
        Whether the teacher works for devices that wait, if there are a teacher and a cache.
    meter
        Measures the joules of this machine in each turn, and is closed at the end; None not to.
    clock
        Set for each turn to what was chosen for it; None to leave the GPU's alone. Closed with the service.
    """

    def __init__(
        self,
        server: DataPlaneServer,
        *,
        student: EdgeStudent,
        objective: Objective,
        settings: TurnSettings,
        ticket_lifetime_s: float,
        codecs: Collection[CodecName] = (),
        cache: TeacherCache | None = None,
        teach_waiting: bool = False,
        meter: EnergyMeter | None = None,
        clock: ServerClock | None = None,
    ) -> None:
        self.server, self.student, self.clock = server, student, clock
        self._cache, self._meter = cache, meter
        self._paces = Paces(settings, next(student.model.parameters()).element_size())
        self._objective, self._settings = objective, settings
        self._ticket_lifetime_s = ticket_lifetime_s
        self._rehearsals: Rehearsals | None = None
        if teach_waiting and objective.teacher is not None and cache is not None:
            self._rehearsals = Rehearsals(objective, objective.teacher, cache, settings, self._paces)
        self._batching = Batching(enabled=settings.batch_devices)
        codes = {codec_code(codec) for codec in (*self._paces.codecs, *codecs)}
        server.start(model=fingerprint_to_wire(student.fingerprint), codecs=tuple(codes))

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher, if there is one."""
        return self._objective.teacher.model if self._objective.teacher else None

    def expect(self, *, run_id: int, node_id: int, server_round: int) -> Session:
        """Admit one node to one turn."""
        expires_s = time.monotonic() + self._ticket_lifetime_s
        return self.server.expect(
            new_ticket(run_id=run_id, node_id=node_id, server_round=server_round, expires_s=expires_s)
        )

    def serve(
        self,
        session: Session,
        *,
        mode: TurnMode,
        cut: int,
        local_epochs: int,
        info: Mapping[str, Any],
        done_steps: int = 0,
        order_step: int | None = None,
        run: str = "",
        codec: CodecName | None = None,
        frequency_hz: float | None = None,
        waiting: Callable[[], Iterable[Session]] = tuple,
    ) -> TurnOutcome:
        """Serve a connected session's turn on this thread, and end the session.

        If the device was lost the session stays, so that it may come back (`Session.ended_s` is None then).

        Parameters
        ----------
        codec
            For both directions; those of the device's pace when not given.
        frequency_hz
            The clock that was chosen for the turn, for an edge that sets its own; its GPU chooses when not given.
        waiting
            The sessions of the next turns.

        Others as in `TurnPlan`.

        Raises
        ------
        SplitKDError
            Why the turn failed; the student is as of the last commit.
        """
        link, hello = session.link, session.hello
        if link is None or hello is None:
            raise ValueError("Only a connected session can be served.")
        try:
            if mode != "deliver":
                self.student.layout.check_cut(cut)
            meanwhile: Callable[[], bool] | None = None
            if (rehearsals := self._rehearsals) is not None:
                rehearsals.end(session, self._settings.step_timeout_s)
                if mode == "train":
                    meanwhile = lambda: rehearsals.work(waiting())  # noqa: E731  # typed as what it is for
            pace = self._paces.of(hello.device_name)
            plan = TurnPlan(
                mode=mode,
                cut=cut,
                local_epochs=local_epochs,
                first_step=self.student.next_step,
                info=info,
                done_steps=done_steps,
                order_step=order_step,
                run=run,
                uplink_codec=codec or pace.uplink_codec,
                downlink_codec=codec or pace.downlink_codec,
                pipeline_depth=pace.pipeline_depth,
            )
            outcome, clock = self._clocked(
                frequency_hz,
                lambda: run_turn(
                    link,
                    hello,
                    student=self.student,
                    objective=self._objective,
                    settings=self._settings,
                    plan=plan,
                    cache=self._cache,
                    meanwhile=meanwhile,
                    meter=self._meter,
                ),
            )
            outcome = replace(outcome, clock=clock)
            self.server.end(session)
            if mode == "train":
                self._paces.learn(hello.device_name, outcome)
            return outcome
        except PeerLostError as error:
            link.fail(error)
            if session.link is link:  # otherwise it has come back already
                self.server.reopen(session)
            raise
        except BaseException as error:
            link.fail(error)
            self.server.end(session)
            raise

    def serve_cluster(
        self, turns: Sequence[ClusterTurn], *, info: Mapping[str, Any], run: str = ""
    ) -> list[TurnOutcome | SplitKDError]:
        """Serve turns of several connected sessions at the same time, to one commit; end the sessions.

        As after `serve`, the session of a device that was lost stays, so that it may come back. The edge has one clock for all of
        them: the highest that was chosen, so that no turn is slower than planned.

        Parameters
        ----------
        turns
            At least one.
        info
            What the commit shall remember beside the turns'.
        run
            As in `TurnPlan`.

        Returns
        -------
        list
            Of each turn what came of it, or why nothing. If no device is left, the student is as of the last commit.

        Raises
        ------
        ConfigError, CutError, StoreError
            If it is no device's fault; everything is undone.
        """
        chosen_hz = [turn.frequency_hz for turn in turns if turn.frequency_hz is not None]
        try:
            outcomes, clock = self._clocked(
                max(chosen_hz, default=None),
                lambda: run_cluster(
                    [self._member(turn, run) for turn in turns],
                    student=self.student,
                    objective=self._objective,
                    settings=self._settings,
                    info=info,
                    batching=self._batching,
                    cache=self._cache,
                    meter=self._meter,
                ),
            )
        except BaseException as error:
            for turn in turns:
                if turn.session.link is not None:
                    turn.session.link.fail(error)
                self.server.end(turn.session)
            raise
        outcomes = [replace(one, clock=clock) if isinstance(one, TurnOutcome) else one for one in outcomes]
        for turn, outcome in zip(turns, outcomes, strict=True):
            link = turn.session.link
            if isinstance(outcome, TurnOutcome) and turn.session.hello is not None:
                self._paces.learn(turn.session.hello.device_name, outcome)
            if isinstance(outcome, PeerLostError):
                if link is None or link.closed:  # otherwise it has come back already
                    self.server.reopen(turn.session)
            else:
                self.server.end(turn.session)
        return outcomes

    def _member(self, turn: ClusterTurn, run: str) -> Member:
        link, hello = turn.session.link, turn.session.hello
        if link is None or hello is None:
            raise ValueError("Only a connected session can be served.")
        self.student.layout.check_cut(turn.cut)
        pace = self._paces.of(hello.device_name)
        plan = TurnPlan(
            mode="train",
            cut=turn.cut,
            local_epochs=turn.local_epochs,
            first_step=self.student.next_step,
            info=turn.info,
            run=run,
            uplink_codec=turn.codec or pace.uplink_codec,
            downlink_codec=turn.codec or pace.downlink_codec,
            pipeline_depth=pace.pipeline_depth,
        )
        return Member(link=link, hello=hello, plan=plan)

    def _clocked(self, frequency_hz: float | None, serve: Callable[[], _Served]) -> tuple[_Served, TurnClock | None]:
        """Serve at a clock; return what came of both, None where none was to be set."""
        if self.clock is None:
            return serve(), None
        self.clock.begin(frequency_hz)
        try:
            served = serve()
        finally:
            held = self.clock.end()
        return served, None if frequency_hz is None else held

    def free_clock(self) -> None:
        """Leave the clock to the GPU until the next turn, for work that is none."""
        if self.clock is not None:
            self.clock.free()

    def dismiss(self, session: Session, reason: str) -> None:
        """Send a connected device away without a turn."""
        if session.link is not None:
            session.link.fail(PeerLostError(reason))
        self.server.end(session)

    def close(self) -> None:
        """Put the clock back, and close every stream and the port."""
        try:
            if self.clock is not None:
                self.clock.close()
        finally:
            try:
                self.server.stop()
            finally:
                if self._meter is not None:
                    self._meter.close()
