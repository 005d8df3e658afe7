"""The teacher for devices that wait for their turn: what it makes of their sequences is kept until then."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flwr_splitkd.errors import ConfigError, CutError, PeerTimeoutError, ProtocolError, SplitKDError, StoreError
from flwr_splitkd.telemetry.spans import SpanRecorder
from flwr_splitkd.tiers.edge.objective import Objective
from flwr_splitkd.tiers.edge.pace import Paces
from flwr_splitkd.tiers.edge.plan import TurnSettings
from flwr_splitkd.tiers.edge.teacher import EdgeTeacher
from flwr_splitkd.tiers.edge.teacher_cache import TeacherCache
from flwr_splitkd.tiers.edge.teaching import Teaching
from flwr_splitkd.tiers.sequences import keys_to_tensor
from flwr_splitkd.tiers.units import encode_all
from flwr_splitkd.wire.codec import codec_code
from flwr_splitkd.wire.framing import WireMessage
from flwr_splitkd.wire.link import Link
from flwr_splitkd.wire.server import Session
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = ["Rehearsals"]


@dataclass(slots=True, eq=False)
class _Rehearsal:
    """One waiting device's: how many messages may still come, and whether one is due."""

    link: Link
    teaching: Teaching
    left: int
    owes: bool = True


class Rehearsals:
    """Lets the teacher work for waiting devices, a micro-batch at a time, when the edge has nothing else to do.

    Each waiting device sends one micro-batch's data and no more until it is answered. Nobody's outcomes give way for it: a full
    cache ends it.

    Parameters
    ----------
    objective
        What devices train for.
    teacher
        Frozen.
    cache
        Where its outcomes are kept.
    settings, paces
        What turns are served with.
    """

    def __init__(
        self, objective: Objective, teacher: EdgeTeacher, cache: TeacherCache, settings: TurnSettings, paces: Paces
    ) -> None:
        self._objective, self._teacher, self._cache = objective, teacher, cache
        self._settings, self._paces = settings, paces
        self._by_session: dict[str, _Rehearsal] = {}

    def work(self, waiting: Iterable[Session]) -> bool:
        """Do one piece of work for one of these, the first that has some; return whether there was any."""
        self._by_session = {name: one for name, one in self._by_session.items() if not one.link.closed}
        return any(self._work_for(session) for session in waiting)

    def end(self, session: Session, timeout_s: float) -> None:
        """Take what the device still owes, so that its turn can begin; it is not looked at.

        Raises
        ------
        SplitKDError
            If it does not come.
        """
        rehearsal = self._by_session.pop(session.ticket.session_id, None)
        if rehearsal is None or rehearsal.link is not session.link:
            return
        if rehearsal.owes:
            # In all, however slowly it comes: nobody has a turn meanwhile.
            if not rehearsal.link.wait_message(timeout_s):
                raise PeerTimeoutError(
                    f"{rehearsal.link.peer} has not sent the rest of what it began before its turn after {timeout_s:g} s; expected "
                    "it by then. Turn `teach_waiting` off for links as slow as that, or raise `step_timeout_s`."
                )
            rehearsal.link.receive("TeacherData", timeout_s)
        rehearsal.link.count_anew()

    def _work_for(self, session: Session) -> bool:
        link, hello = session.link, session.hello
        if link is None or hello is None or not session.connected:
            return False
        rehearsal = self._by_session.get(session.ticket.session_id)
        try:
            if rehearsal is None or rehearsal.link is not link:  # another one if its process was started again
                self._by_session[session.ticket.session_id] = self._begin(link, hello)
                return True
            message = link.poll("TeacherData") if rehearsal.owes else None
            if message is not None:
                self._answer(rehearsal, message)
            return message is not None
        except (StoreError, ConfigError, CutError):  # the edge's own
            raise
        except Exception as error:  # a device that only waits is no trouble to the one whose turn it is
            known = error if isinstance(error, SplitKDError) else ProtocolError(f"{link.peer} while it waited: {error}")
            self._by_session.pop(session.ticket.session_id, None)
            link.give_up(known)  # whoever calls devices sees that it is gone, and why
            return True

    def _begin(self, link: Link, hello: pb.Hello) -> _Rehearsal:
        settings, student = self._settings, self._objective
        pace = self._paces.of(hello.device_name)
        begin = pb.Begin(
            mode=pb.MODE_REHEARSE,
            task=student.task,
            ignore_index=student.loss.ignore_index,
            local_epochs=1,
            gradient_accumulation_steps=1,
            num_microbatches=settings.num_microbatches,
            max_batches=settings.max_batches,
            seed=settings.seed,
            uplink_codec=codec_code(pace.uplink_codec),
            teacher_cache=True,
            teacher_salt=self._cache.salt,
        )
        self._teacher.into(begin)
        tensors = encode_all({"teacher_kept": keys_to_tensor(self._cache.names(hello.device_name))})
        cached = {item.unit: item.version for item in hello.cached_units}
        for unit, version in self._teacher.versions.items():
            begin.units.add(unit=unit, version=version)
            if cached.get(unit) != version:
                tensors.update(encode_all(self._teacher.units[unit], f"{unit}|"))
                hello.cached_units.add(unit=unit, version=version)  # the turn need not send it again
        link.admit()
        link.send(begin, tensors)
        name, spans = hello.device_name, SpanRecorder()
        teaching = Teaching(self._teacher, self._cache, device=name, first_step=0, most_microbatches=1, spans=spans)
        return _Rehearsal(link, teaching, left=hello.num_batches * settings.num_microbatches)

    def _answer(self, rehearsal: _Rehearsal, message: WireMessage) -> None:
        last = not message.tensors
        if rehearsal.link.has_message or (rehearsal.left == 0 and not last):
            raise ProtocolError(
                f"{rehearsal.link.peer} sends more than one message ahead of its answer, or more than its Hello told of; expected "
                "one at a time, of one pass over its data."
            )
        if last:
            rehearsal.owes = False
            return
        rehearsal.left -= 1
        rehearsal.owes = kept = rehearsal.teaching.rehearse(message)
        rehearsal.link.send(pb.Backward(step=message.body.step, teacher_kept=kept))
