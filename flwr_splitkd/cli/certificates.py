"""`flwr-splitkd certificates`: TLS and SuperNode authentication for development."""

from __future__ import annotations

import shlex
import subprocess
import sysconfig
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Optional

import typer

__all__ = ["certificates"]


def certificates(
    folder: Annotated[Path, typer.Argument(help="Where to put them; created when missing.")],
    host: Annotated[
        Optional[list[str]],  # noqa: UP045  # typer reads the annotations, also on Python 3.10
        typer.Option(
            help="DNS name or IP address by which devices reach the edge; may be given several times. "
            "this machine's host name when not given. localhost, 127.0.0.1 and ::1 are added."
        ),
    ] = None,
    supernodes: Annotated[int, typer.Option(help="Key pairs to make, one for each SuperNode.")] = 0,
    days: Annotated[int, typer.Option(help="How long the certificates are valid.")] = 30,
    force: Annotated[bool, typer.Option("--force", help="Replace files of the same names.")] = False,
) -> None:
    """Make certificates and keys for development: TLS on every connection, and authentication of SuperNodes.

    They are signed by an authority that is made on the spot and lies beside them. For anything but development use
    certificates of your own organisation.
    """
    from flwr_splitkd.wire.certificates import edge_hosts, make_certificates, write_new

    hosts = edge_hosts(host or ())
    files = make_certificates(hosts=hosts, supernodes=supernodes, days=days)
    write_new(folder, files, force=force)
    typer.echo(f"Made in {folder}, for development, valid for {days} days:\n")
    typer.echo("  ca.crt, ca.key           an authority")
    typer.echo(f"  server.pem, server.key   the edge's certificate, for {', '.join(hosts)}")
    if supernodes:
        last = f" .. supernode-{supernodes - 1}.*" if supernodes > 1 else ""
        typer.echo(f"  supernode-0.*{last}   a private (.key) and a public key (.pub) for each SuperNode")
    typer.echo(f"\nWith Flower {version('flwr')}:\n")
    typer.echo(_instructions(folder.absolute(), hosts, supernodes))
    typer.echo("Keep the .key files to yourself. Whoever has ca.key can pass for the edge.")


def _instructions(folder: Path, hosts: Sequence[str], supernodes: int) -> str:
    one_port = _superlink_has_one_port()
    listen = "--host 0.0.0.0 --port 8000"
    if not one_port:
        listen = "--control-api-address 0.0.0.0:9093 --fleet-api-address 0.0.0.0:9092"
    control, fleet = ("8000", "8000") if one_port else ("9093", "9092")
    host = next((host for host in hosts if not host.startswith("*")), "edge.local")
    host = f"[{host}]" if ":" in host else host
    authority, certificate, key = (shlex.quote(str(folder / name)) for name in ("ca.crt", "server.pem", "server.key"))
    authenticate = own_key = register = ""
    if supernodes:
        authenticate = " --enable-supernode-auth"
        own_key = " --auth-supernode-private-key supernode-0.key"
        register = f"""
Each SuperNode's public key, once for each SuperLink (each start of one that has no --database):
  for key in {shlex.quote(str(folder))}/supernode-*.pub; do flwr supernode register "$key" my-superlink; done
"""
    return f"""\
Edge, which needs ca.crt, server.pem and server.key:
  FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1 flower-superlink {listen}{authenticate} \\
    --ssl-ca-certfile {authority} --ssl-certfile {certificate} --ssl-keyfile {key}

Whoever calls `flwr`, in ~/.flwr/config.toml:
  [superlink.my-superlink]
  address = "{host}:{control}"
  root-certificates = "{folder / "ca.crt"}"
{register}
Devices; each needs ca.crt and its own key alone. The first:
  flower-supernode --superlink {host}:{fleet} --root-certificates ca.crt{own_key} \\
    --node-config 'partition-id=0 num-partitions={supernodes or 1}'

ServerApp (from flwr_splitkd.wire.credentials import TlsFiles):
  SplitKD(..., data_address="0.0.0.0:9095", advertised_address="{host}", tls=TlsFiles(
      certificate="{folder / "server.pem"}",
      private_key="{folder / "server.key"}",
      root_certificate="{folder / "ca.crt"}"))
"""


def _superlink_has_one_port() -> bool:
    """Ask the installed Flower: its command line changed between versions, and its help says what it understands."""
    program = Path(sysconfig.get_path("scripts")) / "flower-superlink"
    try:
        found = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return True
    return "--port" in found.stdout
