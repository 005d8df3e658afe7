"""What is trained: the module of a cloud next to the edge, and the encoders' adapters if they have any."""

from __future__ import annotations

from peft import LoraConfig

from flwr_splitkd import OptimizerSettings
from flwr_splitkd.models.serial_adapter import SerialAdapterConfig
from flwr_splitkd.tiers.cloud import TaskSettings
from scct_app.config import AppConfig


def encoder_adapters(config: AppConfig) -> LoraConfig | None:
    """Return the adapters that train in place of the encoders' weights; None for the weights themselves."""
    if not config.slm_rank:
        return None
    return LoraConfig(r=config.slm_rank, lora_alpha=2 * config.slm_rank, target_modules="all-linear")


def module_settings(config: AppConfig, slm_width: int) -> TaskSettings:
    """Return the settings of the app's task for encoders of this width."""
    adapter = SerialAdapterConfig(bottleneck=config.bottleneck)
    return TaskSettings(
        slm_width=slm_width,
        peft=adapter if config.method == "serial-adapter" else LoraConfig(r=config.rank, lora_alpha=2 * config.rank),
        optimizer=OptimizerSettings(learning_rate=config.module_learning_rate, weight_decay=config.weight_decay),
        max_grad_norm=config.module_max_grad_norm or None,
        reference_loss=config.reference_loss,
        max_new_tokens=config.max_answer_tokens,
        seed=config.seed,
    )
