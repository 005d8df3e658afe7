"""Tickets and certificate files."""

from __future__ import annotations

from pathlib import Path

import pytest

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.wire.credentials import TlsFiles, new_ticket


def test_tickets_differ_and_hide_their_token() -> None:
    tickets = [new_ticket(run_id=1, node_id=2, server_round=3, expires_s=4.0) for _ in range(20)]
    assert len({ticket.token for ticket in tickets}) == len({ticket.session_id for ticket in tickets}) == 20
    for ticket in tickets:
        assert len(ticket.token) == 32
        assert "token" not in repr(ticket)
        assert repr(ticket.token)[2:10] not in repr(ticket) and ticket.token.hex() not in repr(ticket)


def test_only_the_token_itself_opens() -> None:
    ticket = new_ticket(run_id=1, node_id=2, server_round=3, expires_s=4.0)
    assert ticket.opened_by(bytes(ticket.token))
    flipped = bytes([ticket.token[0] ^ 1]) + ticket.token[1:]
    for wrong in (b"", ticket.token[:-1], ticket.token + b"\0", flipped, ticket.session_id.encode()):
        assert not ticket.opened_by(wrong)


@pytest.mark.parametrize("missing", ["certificate", "private_key", "root_certificate"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    paths = {name: tmp_path / f"{name}.pem" for name in ("certificate", "private_key", "root_certificate")}
    for name, path in paths.items():
        if name != missing:
            path.write_bytes(b"-----BEGIN")
    files = TlsFiles(**paths)
    with pytest.raises(ConfigError, match=f"TLS `{missing}` is '{paths[missing]}'; it cannot be read: No such file"):
        files.root() if missing == "root_certificate" else files.server_credentials()
