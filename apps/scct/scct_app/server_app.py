"""The edge: the other layers of every encoder, and the cloud's address, or the cloud itself in a process next to it."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from flwr_splitkd import SCCT, CutCycle, OptimizerSettings
from flwr_splitkd.models import build_skeleton
from flwr_splitkd.report.prometheus import PrometheusEndpoint
from flwr_splitkd.store import RunFolder
from flwr_splitkd.store.tensor_file import write_tensors
from flwr_splitkd.strategies import Callback, SCCTResult, default_callbacks, summarize_chain
from flwr_splitkd.tiers.cloud import EmbeddedCloud
from flwr_splitkd.tiers.edge.chain import CloudAccess
from flwr_splitkd.tiers.optimizer import warmup_schedule
from scct_app import task
from scct_app.cloud_only import train_cloud_only
from scct_app.config import AppConfig, read_config
from scct_app.device_only import run_device_only
from scct_app.models import llm_builder, model_sources, slm_builder
from scct_app.module import encoder_adapters, module_settings
from scct_app.plan import chain_plan

app = ServerApp()

_log = logging.getLogger("flwr")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; leave metrics, the module and a summary in the run's folder."""
    config = read_config(context.run_config)
    _show_log_of_package()
    access = config.cloud  # before anything that takes long
    if config.without_effect:
        whose, instead = (
            ("a cloud of its own", "see its cloud.toml")
            if access
            else ("a cloud next to the edge", "set `cloud-address`")
        )
        _log.warning("Without effect with %s: %s; %s", whose, ", ".join(config.without_effect), instead)
    new = Path(config.run_dir) / f"{time.strftime('%Y%m%d-%H%M%S')}-{context.run_id}"
    folder = RunFolder.existing(config.resume) if config.resume else RunFolder(new)
    models = model_sources(
        config.slm,
        config.slm_tokenizer,
        None if config.cloud_address else config.llm,
        config.llm_tokenizer,
        dtype=config.dtype,
        run_folder=folder.path,
    )
    folder.write_config({"app": "scct", "run_config": dict(context.run_config), "models": models})
    baselines = task.heldout_baselines(config)
    for name, scores in baselines.items():
        _log.info("Baseline, %s: F1 %.1f, exact match %.1f", name, scores["f1"], scores["exact_match"])
    result = _train(grid, config, folder, access)
    if result.arrays:
        weights = {name: torch.from_numpy(array.numpy().copy()) for name, array in result.arrays.items()}
        write_tensors(folder.path / "module.safetensors", weights, durable=True)
    summary = summarize_chain(result, baselines)
    folder.write_summary(summary)
    _log.info("\n%s", summary)


def _train(grid: Grid, config: AppConfig, folder: RunFolder, access: CloudAccess | None) -> SCCTResult:
    if config.training == "cloud-only":
        return train_cloud_only(config, folder)
    if config.training == "device-only":
        return run_device_only(grid, config, folder)
    return _strategy(config, folder, access).start(grid=grid, num_rounds=config.num_server_rounds)


def _callbacks(config: AppConfig) -> list[Callback] | None:
    """The built-in ones with the endpoint for Prometheus, if there is an address for it; else None, for the former alone."""
    where = config.metrics
    return [*default_callbacks(), PrometheusEndpoint(where)] if where else None


def _strategy(config: AppConfig, folder: RunFolder, access: CloudAccess | None) -> SCCT:
    slm = slm_builder(config.slm, **config.model_options)
    plan = chain_plan(config, slm)
    schedule = warmup_schedule("constant_with_warmup", num_warmup_steps=config.warmup_steps, num_training_steps=0)
    return SCCT(
        slm=slm,
        cloud=access or _embedded(config, build_skeleton(slm).config.hidden_size),  # type: ignore[union-attr, arg-type]  # every encoder of transformers has a config
        task=config.task,
        module_start=config.module_start,  # type: ignore[arg-type]  # one of the allowed choices
        split_point=1 if plan else CutCycle(config.split_point_list),
        plan=plan,
        num_epochs=config.epochs,
        iterations_per_epoch=config.iterations,
        quorum=config.quorum,
        straggler_timeout_s=config.straggler_timeout,
        step_timeout_s=config.step_timeout,
        slm_peft=encoder_adapters(config),
        slm_optimizer=OptimizerSettings(learning_rate=config.slm_learning_rate, weight_decay=config.weight_decay),
        lr_schedule=schedule,
        optimizer_handover=config.optimizer_handover,  # type: ignore[arg-type]  # one of the allowed choices
        max_grad_norm=config.max_grad_norm or None,
        uplink_codec=config.uplink_codec,  # type: ignore[arg-type]  # one of the allowed choices
        downlink_codec=config.downlink_codec,  # type: ignore[arg-type]  # one of the allowed choices
        max_new_tokens=config.max_answer_tokens,
        fraction_train=config.fraction_train,
        fraction_evaluate=config.fraction_evaluate,
        min_available_nodes=config.min_available_nodes,
        data_address=config.data_address,
        advertised_address=config.advertised_address or None,
        tls=config.tls,
        insecure=config.insecure,
        connect_timeout_s=config.connect_timeout,
        grace_period_s=config.grace_period,
        run_folder=None if config.resume else folder.path,
        resume=config.resume or None,
        callbacks=_callbacks(config),
        seed=config.seed,
    )


def _embedded(config: AppConfig, width: int) -> EmbeddedCloud:
    tasks = {config.task: module_settings(config, width)}
    return EmbeddedCloud(
        llm=llm_builder(config.llm, **config.model_options),
        tasks=tasks,
        compute_device=config.cloud_compute_device or None,
    )


def _show_log_of_package() -> None:
    """Where Flower's own lines go: what is left out, where the language model computes, when a cloud is lost and back."""
    package = logging.getLogger("flwr_splitkd")
    package.setLevel(logging.INFO)
    for handler in _log.handlers:
        if handler not in package.handlers:
            package.addHandler(handler)
