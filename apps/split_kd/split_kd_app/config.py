"""Every key of the run config: its type, its bounds and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr_splitkd.config import parse_run_config, setting
from flwr_splitkd.costs import load_shape
from flwr_splitkd.data import DataConfig
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers import CutCycle
from flwr_splitkd.wire.codec import codec_code
from flwr_splitkd.wire.credentials import TlsFiles
from flwr_splitkd.wire.metrics_address import MetricsAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class AppConfig:
    """The run config; ``learning_rate`` here is the key ``learning-rate`` there.

    Parameters
    ----------
    num_server_rounds
        Rounds; in each, the chosen devices take a turn, one after another or in clusters.
    fraction_train, fraction_evaluate
        Share of the devices that takes a turn, and that evaluates on its own data after each round.
    local_epochs
        Passes over a device's data in one turn.
    cut_policy
        Where each turn cuts the student: cycle (through `cuts`), optimal (least energy within `max_delay`), server-only (one
        block on the device) or device-only (all but one).
    cuts
        For cycle, blocks on the device, separated by commas: each new device gets the next entry, over and over, and keeps it.
    max_delay, min_cut, codecs
        For optimal: bound on a turn in seconds (0 for none), least blocks on the device, and codecs to choose from, separated by
        commas (empty for `uplink_codec` and `downlink_codec`). The baselines know the bound too.
    server_frequency, set_frequency
        The edge server's clock where it is modelled, or set: optimal, max or nominal; and whether the edge sets that of its GPU,
        which takes a `fleet` that describes the server.
    selection
        Who is next: round-robin, random, fewest-turns-first, by-name, best-channel, energy-aware or deadline-aware.
    round_deadline
        Seconds of a round, for deadline-aware.
    cluster_size
        Devices that train at the same time and are averaged then; clusters follow one another. 1 is one device after another.
    clusters
        in-order, or alike: devices of similar speed and link together.
    fleet
        What the devices and their links are: empty for common machines, table-ii for those of the paper's case study (devices 0
        to 9), or the path of a fleet file.
    channel
        Of table-ii: good, normal or poor.
    modelled
        Whether seconds, joules and links come from the fleet's model, as a simulation needs.
    foresight
        With modelled, decide each turn by the channel in which it will take place: an upper bound on any planner.
    modelled_student, modelled_teacher
        With modelled, work out costs as if these trained instead: a name such as llama-3.2-1b/8, which has as many blocks as the
        student that does, or the path of a config.json; empty for the run's own models.
    target_perplexity
        Stop once the held-out perplexity is this low; 0 to run all rounds.
    teacher, student, tokenizer
        ``builtin``, or a name or path that ``from_pretrained`` takes. The two models must share the tokenizer.
    dtype
        Of models by name or path.
    tied_embeddings
        For a student with tied embeddings: untie, freeze or refuse.
    train_embeddings
        Whether the student's input embedding trains.
    data
        ``stdlib``, a path of text or JSONL files, or ``hf:<name>``.
    text_field
        Field of a JSONL line or column of a data set that holds the text.
    sequence_length, batch_size, max_batches
        Tokens in a block, blocks in a batch, batches of a pass at most (0 for all).
    temperature, kd_ratio, beta, teacher_vocab
        Of the distillation loss; a larger teacher vocabulary is refused, or sliced.
    optimizer, learning_rate, weight_decay, warmup_steps, max_grad_norm, gradient_accumulation_steps
        Of training; warm-up is linear in optimiser steps over the whole run, a norm of 0 does not clip.
    num_microbatches, pipeline_depth
        Micro-batches that each batch is divided into, and how many of a step are in flight (0: chosen by what turns took).
    trace
        Whether every stage of every step is recorded, in metrics.jsonl and trace.json.
    edge_autocast
        none, or bfloat16 to compute both models' blocks on the edge in it.
    edge_compile, edge_fused_optimizer
        Whether torch compiles both models' blocks on the edge, and whether its optimiser is a single kernel.
    teacher_cache_mib, teacher_cache_disk_mib
        Most MiB in which the edge keeps what the teacher made of sequences.
    teacher_top_k
        Logits of the teacher that are compared one by one (0 for all).
    teach_waiting
        Whether the teacher works for the device that waits for its turn.
    optimizer_handover
        full, reset or device.
    student_on_device
        part, or whole: then every device keeps the distilled student at the end.
    uplink_codec, downlink_codec
        none, float16, bfloat16 or int8; auto for as little loss as the measured rates allow.
    data_address, advertised_address
        Where the data plane listens, and what devices dial if that differs.
    tls_certificate, tls_private_key, tls_root_certificate
        PEM files of the edge; all three or none.
    insecure
        Allow plaintext on an address that is not loopback.
    metrics_address, metrics_certificate, metrics_private_key, metrics_client_ca
        Where Prometheus can read how the run goes, such as 127.0.0.1:9464; empty for nowhere. With the PEM files over TLS, and
        with the last one only by who has a certificate of this authority.
    connect_timeout
        Seconds after which a called device that has not connected no longer holds up the next call.
    grace_period
        Seconds that a device which has lost its connection has to resume its turn.
    commit_every_steps
        Optimiser steps after which a turn commits what it has; 0 for only at its end.
    max_restarts
        Times that a device's worker process is started again when it dies in a turn; 0 for no process of its own.
    run_dir
        Where ``<id>/`` goes; relative to the ServerApp's working directory.
    resume
        Folder of a run to go on with; the other keys should be those of that run.
    seed
        Of everything random.
    """

    num_server_rounds: int = setting(2, minimum=1)
    fraction_train: float = setting(1.0, above=0.0, maximum=1.0)
    fraction_evaluate: float = setting(0.0, minimum=0.0, maximum=1.0)
    local_epochs: int = setting(1, minimum=1)
    cut_policy: str = setting("cycle", choices=("cycle", "optimal", "server-only", "device-only"))
    cuts: str = setting("2,4,6")
    max_delay: float = setting(0.0, minimum=0.0)
    min_cut: int = setting(1, minimum=1)
    codecs: str = setting("")
    server_frequency: str = setting("optimal", choices=("optimal", "max", "nominal"))
    set_frequency: bool = setting(False)
    selection: str = setting(
        "round-robin",
        choices=(
            "round-robin",
            "random",
            "fewest-turns-first",
            "by-name",
            "best-channel",
            "energy-aware",
            "deadline-aware",
        ),
    )
    round_deadline: float = setting(600.0, above=0.0)
    cluster_size: int = setting(1, minimum=1)
    clusters: str = setting("in-order", choices=("in-order", "alike"))
    fleet: str = setting("")
    channel: str = setting("normal", choices=("good", "normal", "poor"))
    modelled: bool = setting(False)
    foresight: bool = setting(False)
    modelled_student: str = setting("")
    modelled_teacher: str = setting("")
    target_perplexity: float = setting(0.0, minimum=0.0)
    teacher: str = setting("builtin")
    student: str = setting("builtin")
    tokenizer: str = setting("builtin")
    dtype: str = setting("float32", choices=("float32", "bfloat16"))
    tied_embeddings: str = setting("refuse", choices=("refuse", "untie", "freeze"))
    train_embeddings: bool = setting(True)
    data: str = setting("stdlib")
    text_field: str = setting("text")
    sequence_length: int = setting(128, minimum=2)
    batch_size: int = setting(4, minimum=1)
    max_batches: int = setting(24, minimum=0)
    temperature: float = setting(1.0, above=0.0)
    kd_ratio: float = setting(0.9, minimum=0.0, maximum=1.0)
    beta: float = setting(0.0, minimum=0.0, maximum=1.0)
    teacher_vocab: str = setting("refuse", choices=("refuse", "slice"))
    optimizer: str = setting("adamw", choices=("adamw", "adam", "sgd"))
    learning_rate: float = setting(3e-3, above=0.0)
    weight_decay: float = setting(0.01, minimum=0.0)
    warmup_steps: int = setting(10, minimum=0)
    max_grad_norm: float = setting(1.0, minimum=0.0)
    gradient_accumulation_steps: int = setting(1, minimum=1)
    num_microbatches: int = setting(1, minimum=1)
    pipeline_depth: int = setting(0, minimum=0)
    trace: bool = setting(False)
    edge_autocast: str = setting("none", choices=("none", "bfloat16"))
    edge_compile: bool = setting(False)
    edge_fused_optimizer: bool = setting(False)
    teacher_cache_mib: int = setting(512, minimum=0)
    teacher_cache_disk_mib: int = setting(0, minimum=0)
    teacher_top_k: int = setting(0, minimum=0)
    teach_waiting: bool = setting(False)
    optimizer_handover: str = setting("full", choices=("full", "reset", "device"))
    student_on_device: str = setting("part", choices=("part", "whole"))
    uplink_codec: str = setting("none", choices=("none", "float16", "bfloat16", "int8", "auto"))
    downlink_codec: str = setting("none", choices=("none", "float16", "bfloat16", "int8", "auto"))
    data_address: str = setting("127.0.0.1:0")
    advertised_address: str = setting("")
    tls_certificate: str = setting("")
    tls_private_key: str = setting("")
    tls_root_certificate: str = setting("")
    insecure: bool = setting(False)
    metrics_address: str = setting("")
    metrics_certificate: str = setting("")
    metrics_private_key: str = setting("")
    metrics_client_ca: str = setting("")
    connect_timeout: float = setting(120.0, above=0.0)
    grace_period: float = setting(15.0, minimum=0.0)
    commit_every_steps: int = setting(0, minimum=0)
    max_restarts: int = setting(0, minimum=0)
    run_dir: str = setting("runs")
    resume: str = setting("")
    seed: int = setting(0, minimum=0)

    @property
    def cut_list(self) -> tuple[int, ...]:
        """The cuts as numbers."""
        try:
            return tuple(int(cut) for cut in self.cuts.split(","))
        except ValueError:
            raise ConfigError(
                f"`cuts` is {self.cuts!r}; expected whole numbers separated by commas, such as '2,4,6'."
            ) from None

    @property
    def codec_list(self) -> tuple[str, ...]:
        """The codecs that the planner may choose from; none for those of the run."""
        return tuple(codec.strip() for codec in self.codecs.split(",")) if self.codecs else ()

    @property
    def text(self) -> DataConfig:
        """The data set."""
        return DataConfig(source=self.data, sequence_length=self.sequence_length, text_field=self.text_field)

    def check_codecs(self) -> None:
        """Raise a ConfigError for a codec that there is not."""
        for codec in self.codec_list:
            codec_code(codec)  # type: ignore[arg-type]  # this is where it is found out

    def check_policies(self) -> None:
        """Raise a ConfigError for keys that this cut policy would pass over."""
        if self.cut_policy != "optimal" and self.min_cut > 1:
            raise ConfigError(
                f"`min-cut` is {self.min_cut} and `cut-policy` {self.cut_policy!r}; expected 'optimal' with it."
            )
        if self.cut_policy != "optimal" and self.codecs:
            raise ConfigError(
                f"`codecs` is {self.codecs!r} and `cut-policy` {self.cut_policy!r}; expected 'optimal' with it. Set "
                "`uplink-codec` and `downlink-codec` otherwise."
            )
        if self.cut_policy == "cycle" and self.max_delay:
            raise ConfigError(
                f"`max-delay` is {self.max_delay:g} and `cut-policy` 'cycle'; expected 'optimal' with it."
            )
        if self.foresight and not self.modelled:
            raise ConfigError("`foresight` is true; expected false without `modelled`: nobody foresees a real channel.")
        if self.set_frequency and (self.modelled or not self.fleet):
            beside = "`modelled` true" if self.modelled else "`fleet` empty"
            raise ConfigError(
                f"`set-frequency` is true and {beside}; expected a real world, and a fleet file with the edge as its `server`."
            )

    def check_modelled(self) -> None:
        """Raise a ConfigError for other models in a world that is real."""
        for key, name in (("modelled-student", self.modelled_student), ("modelled-teacher", self.modelled_teacher)):
            if name and not self.modelled:
                raise ConfigError(f"`{key}` is {name!r}; expected nothing without `modelled`. Set `modelled=true`.")
            if name:
                load_shape(name)

    @property
    def model_options(self) -> dict[str, Any]:
        """What ``from_pretrained`` gets for models by name or path."""
        return {"dtype": self.dtype}

    @property
    def tls(self) -> TlsFiles | None:
        """The certificate files, or None for plaintext."""
        files = (self.tls_certificate, self.tls_private_key, self.tls_root_certificate)
        if not any(files):
            return None
        if not all(files):
            raise ConfigError(
                f"The TLS files are {files}; expected `tls-certificate`, `tls-private-key` and `tls-root-certificate` "
                "together, or none of them."
            )
        return TlsFiles(certificate=files[0], private_key=files[1], root_certificate=files[2])

    @property
    def metrics(self) -> MetricsAddress | None:
        """Where metrics are served; None for nowhere."""
        files = {
            "certificate": self.metrics_certificate or None,
            "private_key": self.metrics_private_key or None,
            "client_ca": self.metrics_client_ca or None,
        }
        if not self.metrics_address:
            if any(files.values()):
                raise ConfigError(
                    f"The files for metrics are {tuple(file or '' for file in files.values())} and `metrics-address` is empty; "
                    "expected an address with them, such as '127.0.0.1:9464'."
                )
            return None
        return MetricsAddress(address=self.metrics_address, **files)


def read_config(run_config: Mapping[str, Any]) -> AppConfig:
    """Parse the run config; every mistake in a single key is reported at once, then those between keys."""
    config = parse_run_config(AppConfig, run_config)
    errors = []
    for check in (
        lambda: CutCycle(config.cut_list),
        lambda: config.tls,
        lambda: config.metrics,
        lambda: config.text,
        config.check_codecs,
        config.check_modelled,
        config.check_policies,
    ):
        try:
            check()
        except ConfigError as error:
            errors.append(str(error))
    if errors:
        raise ConfigError("\n  ".join(["The run config has mistakes:", *errors]))
    return config
