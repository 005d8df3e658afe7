"""`flwr-splitkd doctor`: whether this machine is fit for its role, and what to do if it is not.

=====================  =============================================================================
``examination``        which checks there are, and what each is given of the machine
``finding``            what a check found; a check within its time
``versions``           Python, packages, extras; Flower and the SuperLink's
``torch_build``        torch, in a process of its own (``torch_probe``)
``ports``              ports to listen on, addresses to dial, TLS
``certificate_files``  certificates and keys
``clock``              the kernel's opinion, and a server's
``superlink``          what an HTTP server says: its time, a SuperLink its version
``telemetry``          sensors
``memory``, ``disk``   room for the models; ``needs`` says how much
``limits``             open files, environment
``hardware``           which board, which GPUs
``output``             table and JSON
=====================  =============================================================================
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from flwr_splitkd.errors import ConfigError

if TYPE_CHECKING:
    from flwr_splitkd.cli.doctor.needs import Need

__all__ = ["doctor"]

_WHERE, _TRUST, _MODELS = "Addresses and clock", "Certificates", "Models, for memory and disk"


class Role(str, Enum):
    """Of a machine."""

    device = "device"
    edge = "edge"
    cloud = "cloud"


class Check(str, Enum):
    """What can be looked at alone."""

    versions = "versions"
    torch = "torch"
    ports = "ports"
    certificates = "certificates"
    clock = "clock"
    telemetry = "telemetry"
    memory = "memory"
    disk = "disk"
    limits = "limits"


class Dtype(str, Enum):
    """Of weights and activations."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def doctor(
    role: Annotated[Role, typer.Option(help="What this machine is to be.")],
    superlink: Annotated[
        Optional[str],  # noqa: UP045  # typer reads the annotations, also on Python 3.10
        typer.Option(
            help="HOST:PORT that SuperNodes dial; over TLS if a root certificate is named.", rich_help_panel=_WHERE
        ),
    ] = None,
    superlink_version: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="X.Y of the SuperLink's Flower; it is asked when not given.", rich_help_panel=_WHERE),
    ] = None,
    edge: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="HOST:PORT of the data plane, while a run goes on.", rich_help_panel=_WHERE),
    ] = None,
    cloud: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="HOST:PORT of a chain's cloud.", rich_help_panel=_WHERE),
    ] = None,
    port: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Where an edge or a cloud listens: 9095, 9095-9105, or the same with HOST: before it.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    time_from: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="URL of a server whose clock is right; the SuperLink's when not given.", rich_help_panel=_WHERE
        ),
    ] = None,
    certificates: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder, as `flwr-splitkd certificates` makes it.", rich_help_panel=_TRUST),
    ] = None,
    root_certificate: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The authority's certificate, if it is not the folder's ca.crt.", rich_help_panel=_TRUST),
    ] = None,
    certificate: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="An edge's or a cloud's certificate, if it is not the folder's server.pem.", rich_help_panel=_TRUST
        ),
    ] = None,
    private_key: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Its key, if it is not the folder's server.key.", rich_help_panel=_TRUST),
    ] = None,
    host: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="Name or address that others dial, for which the certificate must be; more than once for more.",
            rich_help_panel=_TRUST,
        ),
    ] = None,
    student: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="A model's name such as gpt2, its config.json, or a folder with one, as for `plan`.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    teacher: Annotated[str, typer.Option(help="The same; 'none' without one.", rich_help_panel=_MODELS)] = "none",
    cut: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Blocks on the device; 1 when not given.", rich_help_panel=_MODELS),
    ] = None,
    llm: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A cloud's large language model, named like the others.", rich_help_panel=_MODELS),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples in a batch.", rich_help_panel=_MODELS)] = 8,
    microbatches: Annotated[int, typer.Option(help="Parts that a batch goes through in.", rich_help_panel=_MODELS)] = 1,
    sequence_length: Annotated[int, typer.Option(help="Tokens in a sample.", rich_help_panel=_MODELS)] = 512,
    dtype: Annotated[Dtype, typer.Option(help="Of weights and activations.", rich_help_panel=_MODELS)] = Dtype.bfloat16,
    moments: Annotated[
        int, typer.Option(help="Values that the optimiser keeps for each weight.", rich_help_panel=_MODELS)
    ] = 2,
    run_folder: Annotated[
        Path, typer.Option(help="Of an edge's runs, or a cloud's state.", rich_help_panel=_MODELS)
    ] = Path("runs"),
    extra: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="An extra that must be installed, such as simulation; more than once for more."),
    ] = None,
    only: Annotated[
        Optional[list[Check]],  # noqa: UP045
        typer.Option(help="Look at this alone; more than once for more."),
    ] = None,
    root: Annotated[
        Path, typer.Option(help="Where the machine's proc, sys and etc lie; in a container perhaps /host.")
    ] = Path("/"),
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds for each check.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Look whether this machine is fit for its role, and say what to do where it is not.

    Everything is looked at, whatever is found. The exit code is 1 if something is wrong, and 0 with warnings alone; what was not
    named, such as an address, is skipped.
    """
    from rich.console import Console

    from flwr_splitkd.cli.doctor.examination import Options, checks
    from flwr_splitkd.cli.doctor.finding import exit_code, within
    from flwr_splitkd.cli.doctor.output import findings_json, print_findings
    from flwr_splitkd.cli.doctor.ports import parse_peer, parse_port

    _refuse_what_does_nothing(role, port=port, student=student, cut=cut, llm=llm)
    try:
        options = Options(
            role=role.value,
            extras=tuple(extra or ()),
            superlink_version=None if superlink_version is None else _version(superlink_version),
            superlink=None if superlink is None else parse_peer(superlink),
            edge=None if edge is None else parse_peer(edge),
            cloud=None if cloud is None else parse_peer(cloud),
            port=None if port is None else parse_port(port),
            certificates=certificates,
            certificate=certificate,
            private_key=private_key,
            root_certificate=root_certificate,
            hosts=tuple(host or ()),
            time_from=None if time_from is None else _url(time_from),
            need=_need(
                role,
                models=(student, teacher, llm),
                cut=cut,
                batch_size=batch_size,
                microbatches=microbatches,
                sequence_length=sequence_length,
                value_bytes=4.0 if dtype is Dtype.float32 else 2.0,
                moments=moments,
            ),
            run_folder=run_folder,
            root=root,
            limit_s=time_limit,
        )
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    wanted = {check.value for check in only or Check}
    found = {}
    with Console(stderr=True).status("") as status:
        for name, check in checks(options).items():
            if name in wanted:
                status.update(f"{name} ...")
                found[name] = within(name, check, limit_s=time_limit)
    if as_json:
        typer.echo(json.dumps(findings_json(role.value, found), indent=2, allow_nan=False))
    else:
        print_findings(role.value, found)
    if code := exit_code(finding for findings in found.values() for finding in findings):
        raise typer.Exit(code)


def _refuse_what_does_nothing(role: Role, *, port: Any, student: Any, cut: Any, llm: Any) -> None:
    idle = {
        "--port": port is not None and role is Role.device,
        "--student": student is not None and role is Role.cloud,
        "--cut": cut is not None and (role is Role.cloud or student is None),
        "--llm": llm is not None and role is not Role.cloud,
    }
    for option, does_nothing in idle.items():
        if does_nothing:
            what = " without `--student`" if option == "--cut" and role is not Role.cloud else ""
            raise typer.BadParameter(f"`{option}` does nothing for the role {role.value}{what}. Leave it out.")


def _version(text: str) -> str:
    from packaging.version import InvalidVersion, Version

    try:
        if len(Version(text).release) > 1:
            return text
    except InvalidVersion:
        pass
    raise ConfigError(f"`--superlink-version` is {text!r}; expected at least X.Y, such as 1.41.")


def _url(text: str) -> str:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(text)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return text
    except ValueError:
        pass  # a port that is none
    raise ConfigError(f"`--time-from` is {text!r}; expected the URL of a server, such as http://edge.local:8000.")


def _need(
    role: Role,
    *,
    models: tuple[str | None, str, str | None],
    cut: int | None,
    batch_size: int,
    microbatches: int,
    sequence_length: int,
    value_bytes: float,
    moments: int,
) -> Need | None:
    from flwr_splitkd.cli.doctor.needs import need_of_cloud, need_of_device, need_of_edge
    from flwr_splitkd.costs import RUNTIME_BYTES, Workload, load_shape

    student, teacher, llm = models
    if llm is not None:
        return need_of_cloud(load_shape(llm), value_bytes)
    if student is None:
        return None
    workload = Workload(
        batch_size=batch_size,
        num_microbatches=microbatches,
        pipeline_depth=microbatches,  # what it may become, where turns choose it
        sequence_length=sequence_length,
        num_batches=1,
        activation_bytes=value_bytes,
        weight_bytes=value_bytes,
        moments=moments,
        causal=True,
        runtime_bytes=RUNTIME_BYTES,
    )
    need = need_of_device if role is Role.device else need_of_edge
    return need(load_shape(student), None if teacher == "none" else load_shape(teacher), workload, cut)
