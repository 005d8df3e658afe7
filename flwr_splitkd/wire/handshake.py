"""What a Hello must satisfy before any tensor travels: pure checks. Torch-free."""

from __future__ import annotations

from collections.abc import Collection

from flwr_splitkd.errors import HandshakeError
from flwr_splitkd.wire.credentials import Ticket
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

__all__ = [
    "PROTOCOL_VERSION",
    "Refusal",
    "check_codecs",
    "check_holder",
    "check_model",
    "check_ticket",
    "check_version",
    "given_up",
    "place_taken",
    "wrong_secret",
    "wrong_token",
]

PROTOCOL_VERSION = 1

_MAX_NAME = 64
"""Characters of a device's name."""

_MAX_CODECS = 16
"""Codecs of a device that an error names."""


class Refusal(HandshakeError):
    """A refused handshake with the code that tells the device why."""

    def __init__(self, code: pb.FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_version(hello: pb.Hello | pb.CloudHello | pb.Resume) -> None:
    """Refuse a device that speaks another version."""
    if hello.protocol_version != PROTOCOL_VERSION:
        raise Refusal(
            pb.FAILURE_CODE_PROTOCOL_VERSION,
            f"Protocol version is {hello.protocol_version}; expected {PROTOCOL_VERSION}. "
            "Install the same flwr_splitkd on the device and on the edge.",
        )


def wrong_token(session_id: str) -> Refusal:
    """Say that a token opens nothing.

    A wrong session and a wrong token look the same from outside, so that sessions cannot be probed for.
    """
    return Refusal(
        pb.FAILURE_CODE_TOKEN,
        f"The token does not open session {session_id[:64]!r}; expected the one that came with the Flower message of this "
        "turn, or the newest one of its stream.",
    )


def wrong_secret(edge: str) -> Refusal:
    """Say that an edge's secret is not the one that the cloud knows; an unknown edge looks the same."""
    return Refusal(
        pb.FAILURE_CODE_TOKEN,
        f"The cloud does not know an edge {clean_name(edge)!r} with this token; expected a name and token of its configuration.",
    )


def place_taken(edge: str, task: str) -> Refusal:
    """Say that another process of the same edge has opened the same task since."""
    return Refusal(
        pb.FAILURE_CODE_TOKEN,
        f"Another process has opened task {clean_name(task)!r} as edge {clean_name(edge)!r}; expected one at a time. Stop the "
        "one that is not needed, or give it a name of its own in the cloud's configuration.",
    )


def given_up(error: BaseException | None) -> Refusal:
    """Say that a turn is over and cannot be resumed."""
    return Refusal(pb.FAILURE_CODE_TOKEN, f"This turn is over: {error or 'it is done'}")


def check_ticket(hello: pb.Hello, ticket: Ticket, *, used: bool, now_s: float) -> None:
    """Refuse a stream whose token is wrong, used or expired."""
    if not ticket.opened_by(hello.token):
        raise wrong_token(hello.session_id)
    if used:
        raise Refusal(
            pb.FAILURE_CODE_TOKEN, f"The token of session {ticket.session_id!r} was used before; expected once."
        )
    if now_s > ticket.expires_s:
        raise Refusal(
            pb.FAILURE_CODE_TOKEN,
            f"The token of session {ticket.session_id!r} expired {now_s - ticket.expires_s:.0f} s ago; "
            "the turn was given up. Raise `timeout` of `strategy.start` if this device needs longer to start.",
        )


def check_holder(hello: pb.Hello, ticket: Ticket) -> None:
    """Refuse a token that was made for another run, node or round."""
    for name in ("run_id", "node_id", "server_round"):
        got, expected = getattr(hello, name), getattr(ticket, name)
        if got != expected:
            raise Refusal(
                pb.FAILURE_CODE_TOKEN, f"The token was made for {name} {expected}; expected this, got {name} {got}."
            )


def check_model(got: pb.ModelFingerprint, expected: pb.ModelFingerprint) -> None:
    """Refuse a device whose student is not the edge's, naming the first property that differs."""
    for field_ in ("architecture", "num_blocks", "hidden_size", "vocab_size", "dtype", "digest"):
        here, there = getattr(expected, field_), getattr(got, field_)
        if here != there:
            raise Refusal(
                pb.FAILURE_CODE_MODEL,
                f"The device's student has {field_} {there!r}; expected {here!r} as on the edge. "
                "Build the student from the same code and settings on both sides.",
            )


def check_codecs(offered: Collection[int], needed: Collection[int]) -> None:
    """Refuse a device that cannot speak a codec of the plan."""
    known = set(offered)  # as sent it may be long, and is compared while other devices wait
    missing = [pb.Codec.Name(code) for code in needed if code not in known]
    if missing:
        names = [
            pb.Codec.Name(code) if code in pb.Codec.values() else str(code) for code in sorted(known)[:_MAX_CODECS]
        ]
        raise Refusal(
            pb.FAILURE_CODE_CODEC,
            f"The device knows the codecs {names}; expected {missing} among them. "
            "Choose a codec that both sides know, or update the device.",
        )


def clean_name(name: str) -> str:
    """A device's name as it may go into logs and files: it comes from outside."""
    return "".join(char for char in name if char.isprintable())[:_MAX_NAME]
