"""The cloud's configuration file, ``cloud.toml``; docs/how-to/cloud.md shows one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from peft import LoraConfig

from flwr_splitkd.config import parse_run_config, setting
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.models import PretrainedModel
from flwr_splitkd.models.serial_adapter import SerialAdapterConfig
from flwr_splitkd.tiers.cloud.placement import check_one_process
from flwr_splitkd.tiers.cloud.settings import TaskSettings
from flwr_splitkd.tiers.cloud.setup import CloudSetup
from flwr_splitkd.tiers.optimizer import LearningRateSchedule, OptimizerSettings, constant, warmup_schedule
from flwr_splitkd.wire.credentials import TlsFiles
from flwr_splitkd.wire.metrics_address import MetricsAddress

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["read_cloud_config"]

_Kind = TypeVar("_Kind")

_TABLES = ("llm", "tls", "metrics", "edges", "tasks")


@dataclass(frozen=True)
class _Cloud:
    address: str = setting("127.0.0.1:9096")
    advertised_address: str = setting("")
    insecure: bool = setting(False)
    state_folder: str = setting("cloud-state")
    commit_every_steps: int = setting(10, minimum=1)
    grace_period: float = setting(15.0, minimum=0)
    max_message_mib: int = setting(1024, minimum=1)
    compute_device: str = setting("")


@dataclass(frozen=True)
class _Tls:
    certificate: str = setting("")
    private_key: str = setting("")
    root_certificate: str = setting("")


@dataclass(frozen=True)
class _Metrics:
    address: str = setting("127.0.0.1:9465")
    certificate: str = setting("")
    private_key: str = setting("")
    client_ca: str = setting("")


@dataclass(frozen=True)
class _Edge:
    token_file: str = setting("")
    token_env: str = setting("")


@dataclass(frozen=True)
class _Task:
    slm_width: int = setting(0, minimum=1)
    method: str = setting("serial-adapter", choices=("serial-adapter", "lora"))
    bottleneck: int = setting(64, minimum=1)
    activation: str = setting("gelu", choices=("gelu", "relu", "silu", "tanh"))
    rank: int = setting(16, minimum=1)
    lora_alpha: int = setting(32, minimum=1)
    lora_dropout: float = setting(0.0, minimum=0, maximum=1)
    target_modules: str = setting("")
    optimizer: str = setting("adamw", choices=("adamw", "adam", "sgd"))
    learning_rate: float = setting(1e-4, above=0)
    weight_decay: float = setting(0.01, minimum=0)
    warmup_steps: int = setting(0, minimum=0)
    max_grad_norm: float = setting(0.0, minimum=0)
    reference_loss: bool = setting(False)
    add_bos: bool = setting(True)
    max_new_tokens: int = setting(32, minimum=1)
    seed: int = setting(0, minimum=0)
    edges: str = setting("")


def read_cloud_config(path: Path) -> CloudSetup:
    """Read ``cloud.toml``; relative paths in it are relative to its folder.

    Raises
    ------
    ConfigError
        If it cannot be read, or with one line for each key that is wrong.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"`--config` is {str(path)!r}, which cannot be read: {error}. See docs/how-to/cloud.md."
        ) from error
    tables = {name: _table(content, name, path) for name in _TABLES}
    cloud, tasks, edges, tls, metrics = _parsed_tables(content, tables, path)
    return CloudSetup(
        llm=_llm(tables["llm"], path),
        tasks={name: _task(name, task, path) for name, task in tasks.items()},
        edges={name: _token(name, edge, path) for name, edge in edges.items()},
        task_edges={name: frozenset(_listed(task.edges)) for name, task in tasks.items() if task.edges},
        state_folder=path.parent / cloud.state_folder,
        commit_every_steps=cloud.commit_every_steps,
        data_address=cloud.address,
        advertised_address=cloud.advertised_address or None,
        tls=_tls(tls, path) if tables["tls"] else None,
        insecure=cloud.insecure,
        grace_period_s=cloud.grace_period,
        max_message_bytes=cloud.max_message_mib << 20,
        compute_device=cloud.compute_device or None,
        metrics=_metrics(metrics, path) if "metrics" in content else None,
    )


def _table(content: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    table = content.get(name, {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"`{name}` of {path} is {table!r}; expected a table, [{name}].")
    return table


def _parsed_tables(
    content: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]], path: Path
) -> tuple[_Cloud, dict[str, _Task], dict[str, _Edge], _Tls, _Metrics]:
    """Everything whose keys are ours; the mistakes of all tables in one error."""
    errors: list[str] = []

    def parsed(kind: type[_Kind], values: Any, table: str) -> _Kind:
        where, what = (f"[{table}] of {path}", "this table") if table else (str(path), "a cloud")
        try:
            if not isinstance(values, Mapping):
                raise ConfigError(f"`{table}` of {path} is {values!r}; expected a table, [{table}].")
            return parse_run_config(kind, values, where=where, what=what)
        except ConfigError as error:
            errors.append(str(error))
            return kind()

    cloud = parsed(_Cloud, {key: value for key, value in content.items() if key not in _TABLES}, "")
    tasks = {name: parsed(_Task, values, f"tasks.{name}") for name, values in tables["tasks"].items()}
    edges = {name: parsed(_Edge, values, f"edges.{name}") for name, values in tables["edges"].items()}
    tls = parsed(_Tls, tables["tls"], "tls")
    metrics = parsed(_Metrics, tables["metrics"], "metrics")
    if errors:
        raise ConfigError("\n".join(errors))
    return cloud, tasks, edges, tls, metrics


def _llm(table: Mapping[str, Any], path: Path) -> PretrainedModel:
    options = dict(table)
    name = options.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f"[llm] of {path} has the keys {sorted(table)}; expected `name` among them: a model of the Hugging Face hub, or a "
            "folder. Every other key goes to from_pretrained: dtype, device_map, attn_implementation, ..."
        )
    quantization = options.pop("quantization", None)
    if quantization is not None:
        from transformers.quantizers.auto import AutoQuantizationConfig

        try:
            options["quantization_config"] = AutoQuantizationConfig.from_dict(dict(quantization))
        except (TypeError, ValueError, ImportError) as error:
            raise ConfigError(f"[llm.quantization] of {path} cannot be used: {error}") from error
    folder = path.parent / name
    model = PretrainedModel(folder if folder.is_dir() else name, **options)
    try:
        check_one_process(model)
    except ConfigError as error:
        raise ConfigError(f"[llm] of {path}: {error}") from error
    return model


def _task(name: str, task: _Task, path: Path) -> TaskSettings:
    if not task.slm_width:
        raise ConfigError(
            f"[tasks.{name}] of {path} lacks `slm-width`; expected the width of the edges' encoders, such as 1024 for "
            "FacebookAI/roberta-large."
        )
    targets = _listed(task.target_modules) or None
    if task.method == "lora":
        peft: Any = LoraConfig(
            r=task.rank, lora_alpha=task.lora_alpha, lora_dropout=task.lora_dropout, target_modules=targets
        )
    else:
        peft = SerialAdapterConfig(
            bottleneck=task.bottleneck,
            activation=task.activation,
            target_modules=tuple(targets) if targets else None,
        )
    schedule: LearningRateSchedule = constant
    if task.warmup_steps:
        schedule = warmup_schedule("constant_with_warmup", num_warmup_steps=task.warmup_steps, num_training_steps=0)
    return TaskSettings(
        slm_width=task.slm_width,
        peft=peft,
        optimizer=OptimizerSettings(
            name=task.optimizer,  # type: ignore[arg-type]  # one of the allowed choices
            learning_rate=task.learning_rate,
            weight_decay=task.weight_decay,
        ),
        lr_schedule=schedule,
        max_grad_norm=task.max_grad_norm or None,
        reference_loss=task.reference_loss,
        add_bos=task.add_bos,
        max_new_tokens=task.max_new_tokens,
        seed=task.seed,
    )


def _token(name: str, edge: _Edge, path: Path) -> bytes:
    """An edge's secret, which does not stand in the configuration itself."""
    if bool(edge.token_file) == bool(edge.token_env):
        raise ConfigError(
            f"[edges.{name}] of {path} names the token file {edge.token_file!r} and the variable {edge.token_env!r}; expected "
            "`token-file` or `token-env`, one of the two."
        )
    if edge.token_env:
        token = os.environ.get(edge.token_env, "")
        if not token:
            raise ConfigError(
                f"`token-env` of [edges.{name}] is {edge.token_env!r}, which is not set in this environment."
            )
        return token.strip().encode()
    try:
        return (path.parent / edge.token_file).read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"`token-file` of [edges.{name}] cannot be read: {error}.") from error


def _tls(tls: _Tls, path: Path) -> TlsFiles:
    missing = [name for name in ("certificate", "private_key", "root_certificate") if not getattr(tls, name)]
    if missing:
        raise ConfigError(f"[tls] of {path} lacks `{missing[0].replace('_', '-')}`; expected all three files.")
    return TlsFiles(
        certificate=path.parent / tls.certificate,
        private_key=path.parent / tls.private_key,
        root_certificate=path.parent / tls.root_certificate,
    )


def _metrics(metrics: _Metrics, path: Path) -> MetricsAddress:
    files = {name: getattr(metrics, name) for name in ("certificate", "private_key", "client_ca")}
    try:
        return MetricsAddress(
            address=metrics.address, **{name: path.parent / file if file else None for name, file in files.items()}
        )
    except ConfigError as error:
        raise ConfigError(f"[metrics] of {path}: {error}") from error


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]
