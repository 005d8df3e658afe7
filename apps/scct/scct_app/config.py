"""Every key of the run config: its type, its bounds and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from flwr_splitkd.config import parse_run_config, setting
from flwr_splitkd.data.questions import EncodingConfig, QuestionConfig
from flwr_splitkd.errors import ConfigError
from flwr_splitkd.schedulers import CutCycle
from flwr_splitkd.schedulers.chain import MECHANISMS
from flwr_splitkd.tiers.edge.chain import CloudAccess
from flwr_splitkd.wire.credentials import TlsFiles
from flwr_splitkd.wire.metrics_address import MetricsAddress

_OF_A_CLOUD_NEXT_TO_THE_EDGE = (
    *("llm", "method", "bottleneck", "rank"),
    *("module_learning_rate", "module_max_grad_norm", "cloud_compute_device"),
)
_OF_A_CLOUD_OF_ITS_OWN = (
    *("cloud_edge", "cloud_token_file", "cloud_root_certificate"),
    *("cloud_insecure", "cloud_patience", "cloud_codec"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppConfig:
    """The run config; ``batch_size`` here is the key ``batch-size`` there.

    Parameters
    ----------
    training
        ``chain``: along device, edge and cloud. Two baselines have the same batches in the same order: ``cloud-only``, the
        module of the language model from the questions' tokens, which are all in one process (the paper's CloudO); and
        ``device-only``, every device its encoder with a head that points at the answer, and nobody else.
    num_server_rounds, epochs, iterations
        Rounds, epochs in a round, and iterations in an epoch: in each, every device trains on one batch at the same time.
    split_points
        Blocks of the encoder on the device, up to all of them, separated by commas: each new device gets the next entry, over
        and over, and keeps it.
    mechanism
        ``none`` for `split_points` and equal shares of the edge; SCCTT, SCCTL or SCCTS for the paper's mechanisms: who decides on
        split points and shares.
    resources
        What a mechanism decides on. ``modelled``: a cell of drawn devices, whose seconds the run records as ``modelled_*``.
        ``measured``: what the run itself measures, after a first epoch on nominal values; it records ``predicted_*`` beside
        ``measured_*``.
    mechanism_split_point, paper_algorithms
        Of SCCTS, the split point of all; whether the paper's own algorithms decide (needs the library ``alns``).
    costed_slm
        The encoder that the modelled cell reckons with, by a name such as roberta-large/4: as many layers as the real one.
        Measured resources reckon with the real one.
    cell_edge_flops, cell_device_flops
        FLOPs a second of the modelled edge, or of the real one before it is measured; and of a device before it is measured,
        unless its node config names a ``device-profile``. The modelled cell draws its devices' speeds.
    cell_subcarriers
        Of 2 MHz, of the modelled cell. Links that are measured are not divided.
    device_memory, edge_memory
        GiB that a device's part of its encoder may take, and the edge's parts of all; 0 for no limit. With measured resources a
        device that has a ``device-profile`` is held to the memory in there instead.
    fraction_train, fraction_evaluate
        Share of the devices that takes part, and that answers held-out questions after each round.
    min_available_nodes
        Devices to wait for.
    quorum, straggler_timeout
        Share of the devices that closes an iteration (1 for all), and seconds that the others then have.
    step_timeout
        Seconds that a device may take for one batch.
    slm, slm_tokenizer
        The encoder: ``builtin``, or a name or path that ``from_pretrained`` takes, such as FacebookAI/roberta-large.
    llm, llm_tokenizer
        The language model in the cloud, likewise. With a `cloud_address` the cloud has its own, and `llm_tokenizer` must be
        that model's.
    dtype
        Of models by name or path.
    method, bottleneck, rank
        The module of a cloud next to the edge: serial-adapter of this bottleneck, or lora of this rank. A cloud of its own has
        this, the language model and the module's rates in its `cloud.toml`; keys of a run that are then without effect are
        named in the log.
    slm_rank
        0 trains every weight of the encoders; above 0 only LoRA of this rank in all their linear layers.
    slm_learning_rate, weight_decay, warmup_steps, max_grad_norm
        Of the encoders, for which 2e-5 is usual where every weight of a large one trains; a norm of 0 does not clip. The weight
        decay is also that of the module of a cloud next to the edge.
    module_learning_rate, module_max_grad_norm
        Of the module of a cloud next to the edge.
    optimizer_handover
        full or reset.
    reference_loss
        Whether a cloud next to the edge also computes the loss of the language model without the encoder, for which the tokens
        of contexts and questions leave the devices. With a `cloud_address` the cloud decides; then this must be on where its
        task's `reference-loss` is, so that the devices have these tokens.
    task
        Which of the cloud's modules is trained.
    cloud_address, cloud_edge, cloud_token_file, cloud_root_certificate
        A cloud of its own (`flwr-splitkd cloud`): ``host:port``, this edge's name and the file of its secret, and the PEM file
        of the authority behind its certificate. Without an address the cloud's service runs next to the edge.
    cloud_insecure
        Whether plaintext may leave this machine on the way to the cloud: no certificate, and the secret in the clear.
    cloud_patience
        Seconds that a cloud of its own may be away before a round is given up.
    cloud_codec
        none, float16, bfloat16 or int8, for the encoders' output on the way to a cloud of its own.
    cloud_compute_device
        A torch device for the language model of a cloud next to the edge, and of `cloud-only`, such as cuda:1 or cpu; the first
        GPU, if there is one, when empty.
    module_start
        Whether a run goes on with the module that the cloud has, or trains it fresh.
    data
        ``stdlib``, a path of SQuAD's JSON or of JSONL files, or ``hf:<name>``.
    batch_size, max_positions, max_answer_tokens
        Questions in a batch, tokens of context and question, and of an answer, at most; longer ones are left out, and the log
        says how many. An encoder has a bound of its own: 512 for roberta-large.
    heldout_questions
        Most questions that a device answers in an evaluation.
    uplink_codec, downlink_codec
        none, float16, bfloat16 or int8, between device and edge.
    data_address, advertised_address, tls_certificate, tls_private_key, tls_root_certificate, insecure
        Of the edge's data plane.
    metrics_address, metrics_certificate, metrics_private_key, metrics_client_ca
        Where Prometheus can read how the run goes, such as 127.0.0.1:9464; empty for nowhere. With the PEM files over TLS, and
        with the last one only by who has a certificate of this authority.
    connect_timeout, grace_period
        Seconds that a round waits for a called device, and that a lost connection has to come back.
    run_dir, resume
        Where ``<id>/`` goes, and the folder of a run to go on with.
    seed
        Of everything random.
    """

    training: str = setting("chain", choices=("chain", "cloud-only", "device-only"))
    num_server_rounds: int = setting(5, minimum=1)
    epochs: int = setting(2, minimum=1)
    iterations: int = setting(20, minimum=1)
    split_points: str = setting("1,2,4")
    mechanism: str = setting("none", choices=("none", *MECHANISMS))
    resources: str = setting("modelled", choices=("modelled", "measured"))
    mechanism_split_point: int = setting(1, minimum=1)
    paper_algorithms: bool = setting(False)
    costed_slm: str = setting("roberta-large/4")
    cell_edge_flops: float = setting(10e12, above=0.0)
    cell_device_flops: float = setting(1e12, above=0.0)
    cell_subcarriers: int = setting(200, minimum=1)
    device_memory: float = setting(0.0, minimum=0.0)
    edge_memory: float = setting(0.0, minimum=0.0)
    fraction_train: float = setting(1.0, above=0.0, maximum=1.0)
    fraction_evaluate: float = setting(1.0, minimum=0.0, maximum=1.0)
    min_available_nodes: int = setting(1, minimum=1)
    quorum: float = setting(1.0, above=0.0, maximum=1.0)
    straggler_timeout: float = setting(1.0, minimum=0.0)
    step_timeout: float = setting(300.0, above=0.0)
    slm: str = setting("builtin")
    slm_tokenizer: str = setting("builtin")
    llm: str = setting("builtin")
    llm_tokenizer: str = setting("builtin")
    dtype: str = setting("float32", choices=("float32", "bfloat16"))
    method: str = setting("serial-adapter", choices=("serial-adapter", "lora"))
    bottleneck: int = setting(64, minimum=1)
    rank: int = setting(16, minimum=1)
    slm_rank: int = setting(0, minimum=0)
    slm_learning_rate: float = setting(5e-4, above=0.0)
    module_learning_rate: float = setting(3e-3, above=0.0)
    weight_decay: float = setting(0.01, minimum=0.0)
    warmup_steps: int = setting(10, minimum=0)
    max_grad_norm: float = setting(1.0, minimum=0.0)
    module_max_grad_norm: float = setting(1.0, minimum=0.0)
    optimizer_handover: str = setting("full", choices=("full", "reset"))
    reference_loss: bool = setting(False)
    task: str = setting("questions")
    cloud_address: str = setting("")
    cloud_edge: str = setting("edge")
    cloud_token_file: str = setting("")
    cloud_root_certificate: str = setting("")
    cloud_insecure: bool = setting(False)
    cloud_patience: float = setting(300.0, minimum=0.0)
    cloud_codec: str = setting("none", choices=("none", "float16", "bfloat16", "int8"))
    cloud_compute_device: str = setting("")
    module_start: str = setting("cloud", choices=("cloud", "fresh"))
    data: str = setting("stdlib")
    batch_size: int = setting(8, minimum=1)
    max_positions: int = setting(192, minimum=2)
    max_answer_tokens: int = setting(48, minimum=2)
    heldout_questions: int = setting(64, minimum=1)
    uplink_codec: str = setting("none", choices=("none", "float16", "bfloat16", "int8"))
    downlink_codec: str = setting("none", choices=("none", "float16", "bfloat16", "int8"))
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
    run_dir: str = setting("runs")
    resume: str = setting("")
    seed: int = setting(0, minimum=0)

    @property
    def split_point_list(self) -> tuple[int, ...]:
        """The split points as numbers."""
        try:
            return tuple(int(point) for point in self.split_points.split(","))
        except ValueError:
            raise ConfigError(
                f"`split-points` is {self.split_points!r}; expected whole numbers separated by commas, such as '1,2,4'."
            ) from None

    @property
    def questions(self) -> QuestionConfig:
        """The data set."""
        return QuestionConfig(source=self.data)

    @property
    def encoding(self) -> EncodingConfig:
        """How questions become tokens."""
        return EncodingConfig(
            max_positions=self.max_positions,
            max_answer_tokens=self.max_answer_tokens,
            on_long="skip",
            reference=self.reference_loss or self.training == "cloud-only",
        )

    @property
    def model_options(self) -> dict[str, Any]:
        """What ``from_pretrained`` gets for models by name or path."""
        return {"dtype": self.dtype}

    @property
    def cloud(self) -> CloudAccess | None:
        """Where the cloud is; None for one next to the edge."""
        if not self.cloud_address:
            return None
        try:
            token = Path(self.cloud_token_file).read_bytes().strip()
            root = Path(self.cloud_root_certificate).read_bytes() if self.cloud_root_certificate else b""
        except OSError as error:
            raise ConfigError(
                f"`cloud-address` is {self.cloud_address!r}; expected `cloud-token-file` (and with TLS "
                f"`cloud-root-certificate`) to be readable files with it: {error}."
            ) from error
        return CloudAccess(
            address=self.cloud_address,
            edge=self.cloud_edge,
            token=token,
            task=self.task,
            root_certificate=root,
            insecure=self.cloud_insecure,
            patience_s=self.cloud_patience,
            codec=self.cloud_codec,  # type: ignore[arg-type]  # one of the allowed choices
        )

    @property
    def answer_timeout_s(self) -> float:
        """Seconds that a device waits for an answer: the edge, which waits for the others and the cloud, gives up first."""
        return max(3600.0, 2 * self.step_timeout + self.cloud_patience)

    @property
    def without_effect(self) -> list[str]:
        """Keys that were changed, and that nothing reads: those of the other kind of cloud."""
        names = _OF_A_CLOUD_NEXT_TO_THE_EDGE if self.cloud_address else _OF_A_CLOUD_OF_ITS_OWN
        defaults = {field.name: field.default for field in fields(self)}
        return [name.replace("_", "-") for name in names if getattr(self, name) != defaults[name]]

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
    if config.training != "chain" and (config.cloud_address or config.resume):
        key = "cloud-address" if config.cloud_address else "resume"
        errors.append(
            f"`training` is {config.training!r} and `{key}` is set; expected `{key}` with 'chain' only: a baseline trains without "
            "a cloud, and from the start."
        )
    if config.resources == "measured" and config.mechanism == "none":
        errors.append(
            f"`resources` is 'measured' and `mechanism` is 'none'; expected one of {', '.join(MECHANISMS)}, which decides on them."
        )
    if config.training != "chain" and config.metrics_address:
        errors.append(
            f"`training` is {config.training!r} and `metrics-address` is {config.metrics_address!r}; expected no address with a "
            "baseline, of which nothing is served."
        )
    for check in (
        lambda: CutCycle(config.split_point_list),
        lambda: config.tls,
        lambda: config.metrics,
        lambda: config.questions,
    ):
        try:
            check()
        except ConfigError as error:
            errors.append(str(error))
    if errors:
        raise ConfigError("\n  ".join(["The run config has mistakes:", *errors]))
    return config
