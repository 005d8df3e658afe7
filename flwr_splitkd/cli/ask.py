"""`flwr-splitkd ask`: one question through the chain device - edge - cloud."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from flwr_splitkd.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from flwr_splitkd.cli.ask_settings import Settings
    from flwr_splitkd.tiers.device.chain import Asked
    from flwr_splitkd.tiers.edge.chain import Answered

__all__ = ["ask"]

_OptionalText = Optional[str]  # noqa: UP045  # typer reads the annotations, also on Python 3.10
_OptionalPath = Optional[Path]  # noqa: UP045
_OptionalNumber = Optional[int]  # noqa: UP045


def ask(
    question: Annotated[str, typer.Argument(help="What is asked.")],
    context: Annotated[str, typer.Option(help="The text to find the answer in, or @FILE with it.")] = "",
    run: Annotated[
        _OptionalPath,
        typer.Option(
            help="Folder of a run of SCCT, such as runs/<id>: every other option has a default there. A cloud that ran next to "
            "the edge is started again, from the run's settings and state."
        ),
    ] = None,
    device: Annotated[
        _OptionalText,
        typer.Option(help="Node id of the device whose encoder is asked, if this machine has several of the run."),
    ] = None,
    encoder: Annotated[
        _OptionalPath,
        typer.Option(
            help="Folder of a device's encoder. With --run, that of the run in the devices' cache when not given."
        ),
    ] = None,
    slm: Annotated[
        _OptionalText, typer.Option(help="The encoder's structure: a name on the Hugging Face hub, or a folder.")
    ] = None,
    split_point: Annotated[int, typer.Option(help="Blocks of the encoder on the device, 1 to all.")] = 1,
    cloud: Annotated[_OptionalText, typer.Option(help="host:port of a running `flwr-splitkd cloud`.")] = None,
    edge: Annotated[
        _OptionalText,
        typer.Option(
            help="Name of an edge in the cloud's configuration; edge when not given. A run of that edge may go on meanwhile."
        ),
    ] = None,
    token_file: Annotated[_OptionalPath, typer.Option(help="File with that edge's token.")] = None,
    root_certificate: Annotated[
        _OptionalPath,
        typer.Option(help="PEM of the authority behind the cloud's certificate; plaintext when not given."),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Let plaintext leave this machine: no certificate, secret and text in the clear."
        ),
    ] = False,
    task: Annotated[_OptionalText, typer.Option(help="Task of the cloud whose module answers.")] = None,
    slm_tokenizer: Annotated[
        _OptionalText, typer.Option(help="Tokenizer of the encoder, a name or a folder; that of --slm when not given.")
    ] = None,
    llm_tokenizer: Annotated[
        _OptionalText, typer.Option(help="Tokenizer of the cloud's language model, a name or a folder.")
    ] = None,
    dtype: Annotated[
        _OptionalText, typer.Option(help="Of the encoder: float32 or bfloat16; float32 when not given.")
    ] = None,
    max_positions: Annotated[
        _OptionalNumber, typer.Option(min=2, help="Tokens of context and question, at most; 192 when not given.")
    ] = None,
    max_new_tokens: Annotated[
        _OptionalNumber, typer.Option(min=1, help="Tokens of the answer, at most; 32 when not given.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the answer.")] = False,
) -> None:
    """Ask one question, through the whole chain: device, edge and cloud.

    The device's part runs in this process, with the encoder that a device has trained; the edge's part in a process of its
    own; and the cloud's where the cloud is. The answer goes to standard output, and what each of the three did to standard
    error. Nothing is trained, and nobody who trains is disturbed.
    """
    from flwr_splitkd.cli.ask_settings import Settings, cloud_access, known_by_run

    given = Settings(
        slm=slm,
        slm_tokenizer=slm_tokenizer,
        llm_tokenizer=llm_tokenizer,
        dtype=dtype,
        task=task,
        cloud=cloud,
        edge=edge,
        token_file=str(token_file) if token_file else None,
        root_certificate=str(root_certificate) if root_certificate else None,
        insecure=insecure or None,
        max_positions=max_positions,
        max_new_tokens=max_new_tokens,
    )
    settings = given.over(known_by_run(run)) if run is not None else given
    device_side = _Device.of(settings, encoder, device, split_point, question, _text(context))
    tokenizer = _tokenizer("llm-tokenizer", settings.value("llm_tokenizer"))

    from flwr_splitkd.tiers.edge.chain import QuestionEdge

    with cloud_access(settings) as (access, started):
        one = QuestionEdge(
            slm=device_side.slm,
            slm_peft=device_side.slm_peft,
            access=access,
            split_point=split_point,
            max_new_tokens=settings.value("max_new_tokens"),
        )
        with one.running() as door:
            asked = device_side.asker.ask(door.address, door.ticket, device_side.batch)
            answered = door.outcome()
            where = _Where(edge_process_id=door.process_id, cloud_address=access.address, cloud_started=started)
    answer: Any = tokenizer.decode(list(asked.tokens), skip_special_tokens=True)
    said = _told(question, answer.strip(), asked, answered, where, device_side)
    if as_json:
        typer.echo(json.dumps(said))
    else:
        for line in _lines(said):
            typer.echo(line, err=True)
        typer.echo(said["answer"])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Where:
    edge_process_id: int
    cloud_address: str
    cloud_started: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Device:
    """What the device's part is done with."""

    slm: Any
    slm_peft: Any
    asker: Any
    batch: Any
    folder: Path
    num_blocks: int

    @classmethod
    def of(
        cls, settings: Settings, folder: Path | None, device: str | None, split_point: int, question: str, context: str
    ) -> _Device:
        from flwr_splitkd.data.questions import encode_unanswered
        from flwr_splitkd.models import PretrainedModel, build_skeleton, fingerprint, inner_model, peft_from_json
        from flwr_splitkd.split import encoder_units, find_layout
        from flwr_splitkd.tiers.device.chain import Asker

        name = settings.value("slm")
        slm = PretrainedModel(name, task="encoder", dtype=settings.value("dtype"))
        slm_peft = peft_from_json(settings.slm_peft or "")
        try:
            skeleton = inner_model(build_skeleton(slm, slm_peft))
        except (OSError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"`--slm` is {name!r}, which cannot be used: {_first_line(error)}") from error
        layout = find_layout(skeleton)
        encoder_units(layout, split_point)  # refuses one that is out of range
        tokenizer = _tokenizer("slm-tokenizer", settings.slm_tokenizer or name)
        batch = encode_unanswered(context, question, tokenizer, settings.value("max_positions"))
        folder = folder or _encoder_of(settings, device, fingerprint(skeleton, layout).digest)
        asker = Asker(folder, skeleton, layout)
        return cls(slm=slm, slm_peft=slm_peft, asker=asker, batch=batch, folder=folder, num_blocks=layout.num_blocks)


def _encoder_of(settings: Settings, device: str | None, digest: str) -> Path:
    """The folder of a device's encoder in the devices' cache on this machine."""
    from flwr_splitkd.store import cache_root, encoders_of_run

    if settings.run_name is None:
        raise ConfigError("`--encoder` is missing; expected the folder of a device's encoder, or `--run`.")
    found = encoders_of_run(digest, settings.run_name)
    where = f"run {settings.run_name} in {cache_root() / 'encoders'}"
    if not found:
        raise StoreError(
            f"There is no encoder of {where}; expected one of a device on this machine. Ask on a device's machine, set "
            "FLWR_SPLITKD_CACHE as it is there, or give `--encoder`."
        )
    if device is None and len(found) == 1:
        return next(iter(found.values()))
    if device not in found:
        raise ConfigError(f"`--device` is {device!r}; expected one of {', '.join(found)}, the devices of {where}.")
    return found[device]


def _tokenizer(option: str, name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"`--{option}` is {name!r}, which has no tokenizer that can be used: {_first_line(error)}"
        ) from error
    return tokenizer


def _first_line(error: Exception) -> str:
    return f"{error}".partition("\n")[0]


def _text(context: str) -> str:
    if not context.startswith("@"):
        return context
    try:
        return Path(context[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`--context` is {context!r}; expected a readable text file after the @: {error}.") from error


def _told(
    question: str, answer: str, asked: Asked, answered: Answered, where: _Where, device: _Device
) -> dict[str, Any]:
    """What ``--json`` prints."""
    part = answered.device
    return {
        "question": question,
        "answer": answer,
        "tokens": list(asked.tokens),
        "seconds": asked.duration_s,
        "device": {
            "process_id": os.getpid(),
            "encoder": str(device.folder),
            "encoder_round": device.asker.info.get("server_round"),
            "split_point": part.split_point,
            "num_blocks": device.num_blocks,
            "compute_s": part.device_s,
            "uplink_bytes": asked.uplink_bytes,
            "downlink_bytes": asked.downlink_bytes,
        },
        "edge": {
            "process_id": where.edge_process_id,
            "compute_s": part.edge_s,
            "uplink_bytes": answered.uplink_bytes,
            "downlink_bytes": answered.downlink_bytes,
        },
        "cloud": {
            "process_id": answered.cloud_process_id,
            "address": where.cloud_address,
            "started_here": where.cloud_started,
            "compute_s": part.cloud_s,
        },
    }


def _lines(said: dict[str, Any]) -> list[str]:
    device, edge, cloud = said["device"], said["edge"], said["cloud"]
    return [
        f"device: process {device['process_id']} on this machine, {device['split_point']} of {device['num_blocks']} blocks, "
        f"{device['compute_s']:.3f} s; to the edge {_kib(device)}",
        f"edge: a process on this machine, {edge['process_id']}, {edge['compute_s']:.3f} s; to the cloud {_kib(edge)}",
        f"cloud: process {cloud['process_id']} at {cloud['address']}"
        f"{', started for this question' if cloud['started_here'] else ''}, {cloud['compute_s']:.3f} s",
    ]


def _kib(tier: dict[str, Any]) -> str:
    return f"{tier['uplink_bytes'] / 1024:.1f} KiB up, {tier['downlink_bytes'] / 1024:.1f} KiB down"
