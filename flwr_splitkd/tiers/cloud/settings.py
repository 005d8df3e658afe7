"""What a task of the cloud is configured with."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import LoraConfig

from flwr_splitkd.errors import ConfigError
from flwr_splitkd.models.serial_adapter import SerialAdapterConfig
from flwr_splitkd.tiers.optimizer import LearningRateSchedule, OptimizerSettings, constant

__all__ = ["TaskSettings"]

_STARTS_FROM_BASE = (True, False, "gaussian", "orthogonal")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSettings:
    """One task: its module, and how that trains.

    Parameters
    ----------
    slm_width
        Values per position of the small encoder's output.
    peft
        The paper's serial adapters, or LoRA. LoRA may not touch what the tasks share: biases, embeddings, output projection,
        or the LLM's weights as some ways to initialise do.
    optimizer
        Of the module and the projection.
    lr_schedule
        Factor on the learning rate by step.
    max_grad_norm
        Bound on the global norm of the summed gradient; None for no clipping.
    reference_loss
        Whether the loss of equation (8) is computed too, for which the context's tokens must come here.
    add_bos
        Whether the LLM's first token, if it has one, precedes what comes from the encoder.
    max_new_tokens
        Most tokens of an answer where the caller names no number.
    seed
        Of initial weights and of dropout.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    slm_width: int
    peft: SerialAdapterConfig | LoraConfig = field(default_factory=SerialAdapterConfig)
    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(learning_rate=1e-4))
    lr_schedule: LearningRateSchedule = constant
    max_grad_norm: float | None = None
    reference_loss: bool = False
    add_bos: bool = True
    max_new_tokens: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("slm_width", "max_new_tokens"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"`{name}` is {value!r}; expected an integer of at least 1.")
        if self.max_grad_norm is not None and not 0 < self.max_grad_norm < float("inf"):
            raise ConfigError(
                f"`max_grad_norm` is {self.max_grad_norm}; expected a finite number above 0, or None to leave clipping out."
            )
        if isinstance(self.peft, LoraConfig):
            _check_lora(self.peft)
        elif not isinstance(self.peft, SerialAdapterConfig):
            raise ConfigError(
                f"`peft` is a {type(self.peft).__name__}; expected a SerialAdapterConfig or a LoraConfig."
            )


def _check_lora(config: LoraConfig) -> None:
    """Refuse what would change the LLM for the other tasks."""
    if config.bias != "none":
        raise ConfigError(
            f"`bias` of the LoraConfig is {config.bias!r}; expected 'none': tasks share the LLM's biases."
        )
    if config.init_lora_weights not in _STARTS_FROM_BASE:
        raise ConfigError(
            f"`init_lora_weights` is {config.init_lora_weights!r}; expected one of {_STARTS_FROM_BASE}, because tasks share "
            "the LLM's weights, which other ways to initialise change."
        )
    if config.inference_mode:
        raise ConfigError("`inference_mode` of the LoraConfig is True; expected False: the module is trained.")
    for name in ("modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters"):
        if getattr(config, name, None):
            raise ConfigError(
                f"`{name}` of the LoraConfig is {getattr(config, name)!r}; expected None: a task's module is made of LoRA "
                "layers alone."
            )
