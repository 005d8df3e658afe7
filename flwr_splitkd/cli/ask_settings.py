"""What `flwr-splitkd ask` needs to know: from its options, else from the folder of a run, else by default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from peft import LoraConfig

from flwr_splitkd.errors import ConfigError, StoreError
from flwr_splitkd.models import PretrainedModel
from flwr_splitkd.models.serial_adapter import SerialAdapterConfig
from flwr_splitkd.store import RunFolder
from flwr_splitkd.strategies.chain.progress import ChainProgress
from flwr_splitkd.tiers.cloud import EmbeddedCloud, TaskSettings
from flwr_splitkd.tiers.edge.chain import CloudAccess
from flwr_splitkd.tiers.optimizer import OptimizerSettings

__all__ = ["Settings", "cloud_access", "known_by_run", "task_settings"]

_DEFAULTS: dict[str, Any] = {
    "dtype": "float32",
    "max_positions": 192,
    "max_new_tokens": 32,
    "edge": "edge",
    "root_certificate": "",
    "insecure": False,
}
_LORA = (
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out", "init_lora_weights"),
)
"""What of LoRA's settings says which module it is, and how it computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Models, task and cloud of a chain; None is not known.

    `slm_peft` is the encoder's adapters as `peft_to_json` writes them, `tasks` are those of a cloud next to the edge as
    ``config.json`` describes them, and `run_name` is the name under which devices keep their encoders.
    """

    slm: str | None = None
    slm_peft: str | None = None
    slm_tokenizer: str | None = None
    llm: str | None = None
    llm_tokenizer: str | None = None
    dtype: str | None = None
    task: str | None = None
    cloud: str | None = None
    edge: str | None = None
    token_file: str | None = None
    root_certificate: str | None = None
    insecure: bool | None = None
    max_positions: int | None = None
    max_new_tokens: int | None = None
    run: Path | None = None
    run_name: str | None = None
    tasks: Mapping[str, Any] = field(default_factory=dict)

    def over(self, other: Settings) -> Settings:
        """These settings, and those of `other` where they know nothing."""
        both = {item.name: (getattr(self, item.name), getattr(other, item.name)) for item in fields(self)}
        return Settings(**{name: second if first in (None, {}) else first for name, (first, second) in both.items()})

    def value(self, name: str) -> Any:
        """A setting that there must be.

        Raises
        ------
        ConfigError
            If neither options nor run say it, and it has no default.
        """
        found = getattr(self, name)
        found = _DEFAULTS.get(name) if found is None else found
        if found is None:
            raise ConfigError(
                f"`--{name.replace('_', '-')}` is missing; expected it, or `--run` with the folder of a run that knows it."
            )
        return found


def known_by_run(path: Path) -> Settings:
    """What the folder of a run of SCCT knows.

    Raises
    ------
    ConfigError
        If there is no such run.
    """
    config = RunFolder(path).read_config() if path.is_dir() else {}
    strategy = config.get("strategy", {})
    if not isinstance(strategy, dict) or strategy.get("name") != "SCCT":
        raise ConfigError(
            f"`--run` is {str(path)!r}; expected the folder of a run of SCCT, such as runs/<id>, with its config.json. "
            f"A relative path is below {Path.cwd()}."
        )
    models, run_config, cloud = (
        part if isinstance(part, dict) else {}
        for part in (config.get("models"), config.get("run_config"), strategy.get("cloud"))
    )
    return Settings(
        **{name: models.get(name) for name in ("slm", "slm_tokenizer", "llm", "llm_tokenizer", "dtype")},
        slm_peft=strategy.get("slm_peft") or None,
        task=strategy.get("task"),
        cloud=cloud.get("address"),
        edge=cloud.get("edge"),
        token_file=run_config.get("cloud-token-file") or None,
        root_certificate=run_config.get("cloud-root-certificate") or None,
        insecure=run_config.get("cloud-insecure"),
        max_positions=run_config.get("max-positions"),
        max_new_tokens=(strategy.get("settings") or {}).get("max_new_tokens") or None,
        run=path,
        run_name=ChainProgress.load(path).run,
        tasks=cloud.get("tasks", {}),
    )


@contextmanager
def cloud_access(settings: Settings) -> Iterator[tuple[CloudAccess, bool]]:
    """The cloud for the ``with`` block, and whether it was started for it.

    Raises
    ------
    ConfigError
        If too little is known of it, or a file cannot be read.
    StoreError
        If the run whose cloud is to be started goes on, or has left no state.
    """
    if settings.cloud is not None:
        yield _cloud_of_its_own(settings), False
        return
    if not settings.tasks:
        settings.value("cloud")  # which is missing
    run, task = Path(settings.value("run")), settings.value("task")
    if task not in settings.tasks:
        raise ConfigError(f"`--task` is {task!r}; expected one of {sorted(settings.tasks)}, those of the run {run}.")
    state = run / "cloud"
    if not (state / task).is_dir():
        raise StoreError(
            f"{state / task} is not there; expected the module's state, which the cloud next to the edge writes at the end of a "
            "round. Let the run end its first round."
        )
    embedded = EmbeddedCloud(
        llm=PretrainedModel(settings.value("llm"), dtype=settings.value("dtype")),
        tasks={name: task_settings(described) for name, described in settings.tasks.items()},
    )
    # The state has one owner at a time: the run, or this.
    with RunFolder(run).locked(), embedded.running(state) as (address, edge, token):
        yield CloudAccess(address=address, edge=edge, token=token, task=task), True


def _cloud_of_its_own(settings: Settings) -> CloudAccess:
    token_file, root = settings.value("token_file"), settings.value("root_certificate")
    try:
        token = Path(token_file).read_bytes().strip()
        certificate = Path(root).read_bytes() if root else b""
    except OSError as error:
        raise ConfigError(
            f"`--token-file` is {str(token_file)!r} and `--root-certificate` is {str(root)!r}; expected readable files: {error}."
        ) from error
    return CloudAccess(
        address=settings.value("cloud"),
        edge=settings.value("edge"),
        token=token,
        task=settings.value("task"),
        root_certificate=certificate,
        insecure=settings.value("insecure"),
    )


def task_settings(described: Mapping[str, Any]) -> TaskSettings:
    """A task of the embedded cloud, from its description in ``config.json``; its schedule is left out, since nothing is trained.

    Raises
    ------
    ConfigError
        If it is no description of a task.
    """
    try:
        peft: Mapping[str, Any] = described["peft"]
        if "bottleneck" in peft:
            targets = peft["target_modules"]
            module: Any = SerialAdapterConfig(**{**peft, "target_modules": tuple(targets) if targets else None})
        else:
            module = LoraConfig(**{name: peft[name] for name in _LORA if name in peft})
        plain = ("slm_width", "max_grad_norm", "add_bos", "max_new_tokens", "seed", "reference_loss")
        return TaskSettings(
            peft=module,
            optimizer=OptimizerSettings(**described["optimizer"]),
            **{name: described[name] for name in plain},
        )
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"A task of the run's config.json cannot be read: {error!r}. Was the run made with another flwr_splitkd? Start "
            "`flwr-splitkd cloud` with the run's settings and state, and give `--cloud`."
        ) from error
