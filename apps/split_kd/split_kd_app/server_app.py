"""The edge: the teacher, the rest of the student, and the order of the turns."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from flwr_splitkd import SplitKD
from flwr_splitkd.distill import DistillationLoss
from flwr_splitkd.models import set_tied_embeddings
from flwr_splitkd.records import arrays_from_state, load_arrays
from flwr_splitkd.report.prometheus import PrometheusEndpoint
from flwr_splitkd.schedulers import NeverStop, TargetMetric
from flwr_splitkd.store import RunFolder
from flwr_splitkd.strategies import Callback, SplitKDResult, default_callbacks, summarize
from flwr_splitkd.tiers.optimizer import OptimizerSettings, warmup_schedule
from split_kd_app import policies, task
from split_kd_app.config import AppConfig, read_config

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; leave metrics, the student and a summary in the run's folder."""
    config = read_config(context.run_config)
    callbacks = _callbacks(config)  # before anything that takes long
    new = Path(config.run_dir) / f"{time.strftime('%Y%m%d-%H%M%S')}-{context.run_id}"
    folder = RunFolder.existing(config.resume) if config.resume else RunFolder(new)
    folder.write_config({"app": "split_kd", "run_config": dict(context.run_config)})

    student = task.student_builder(config.student, **config.model_options)
    whole = student()
    set_tied_embeddings(whole, config.tied_embeddings)  # type: ignore[arg-type]  # one of the allowed choices
    heldout = task.heldout_loader(config=config.text, tokenizer=task.load_tokenizer(config.tokenizer))

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord(task.evaluate(load_arrays(whole, arrays), heldout))

    result = _strategy(config, folder, callbacks).start(
        grid=grid,
        initial_arrays=arrays_from_state(whole.state_dict()),
        num_rounds=config.num_server_rounds,
        evaluate_fn=evaluate,
    )
    _save(result, folder, whole, config)


def _callbacks(config: AppConfig) -> list[Callback] | None:
    """The built-in ones with the endpoint for Prometheus, if there is an address for it; else None, for the former alone."""
    where = config.metrics
    return [*default_callbacks(), PrometheusEndpoint(where)] if where else None


def _strategy(config: AppConfig, folder: RunFolder, callbacks: list[Callback] | None) -> SplitKD:
    return SplitKD(
        student=task.student_builder(config.student, **config.model_options),
        teacher=task.teacher_builder(config.teacher, **config.model_options),
        loss=DistillationLoss(
            temperature=config.temperature,
            kd_ratio=config.kd_ratio,
            beta=config.beta,
            teacher_vocab=config.teacher_vocab,  # type: ignore[arg-type]  # one of the allowed choices
        ),
        cut=policies.cut_policy(config),
        selection=policies.selection(config),
        cluster_size=config.cluster_size,
        clusters=policies.clusters(config),
        planner=policies.planner(config),
        local_epochs=config.local_epochs,
        stop=TargetMetric("perplexity", at_most=config.target_perplexity) if config.target_perplexity else NeverStop(),
        tied_embeddings=config.tied_embeddings,  # type: ignore[arg-type]  # one of the allowed choices
        train_embeddings=config.train_embeddings,
        optimizer=OptimizerSettings(
            name=config.optimizer,  # type: ignore[arg-type]  # one of the allowed choices
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
        ),
        lr_schedule=warmup_schedule("constant_with_warmup", num_warmup_steps=config.warmup_steps, num_training_steps=0),
        optimizer_handover=config.optimizer_handover,  # type: ignore[arg-type]  # one of the allowed choices
        student_on_device=config.student_on_device,  # type: ignore[arg-type]  # one of the allowed choices
        max_grad_norm=config.max_grad_norm or None,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_microbatches=config.num_microbatches,
        pipeline_depth=config.pipeline_depth,
        trace=config.trace,
        edge_autocast=None if config.edge_autocast == "none" else "bfloat16",
        edge_compile=config.edge_compile,
        edge_fused_optimizer=config.edge_fused_optimizer,
        set_frequency=config.set_frequency,
        teacher_cache_bytes=config.teacher_cache_mib << 20,
        teacher_cache_disk_bytes=config.teacher_cache_disk_mib << 20,
        teacher_top_k=config.teacher_top_k or None,
        teach_waiting=config.teach_waiting,
        uplink_codec=config.uplink_codec,  # type: ignore[arg-type]  # one of the allowed choices
        downlink_codec=config.downlink_codec,  # type: ignore[arg-type]  # one of the allowed choices
        fraction_train=config.fraction_train,
        fraction_evaluate=config.fraction_evaluate,
        data_address=config.data_address,
        advertised_address=config.advertised_address or None,
        tls=config.tls,
        insecure=config.insecure,
        connect_timeout_s=config.connect_timeout,
        grace_period_s=config.grace_period,
        commit_every_steps=config.commit_every_steps,
        run_folder=None if config.resume else folder.path,
        resume=config.resume or None,
        callbacks=callbacks,
        seed=config.seed,
    )


def _save(result: SplitKDResult, folder: RunFolder, student: torch.nn.Module, config: AppConfig) -> None:
    load_arrays(student, result.arrays).save_pretrained(folder.student)  # type: ignore[operator]  # every builder of this app makes a transformers model
    task.load_tokenizer(config.tokenizer).save_pretrained(folder.student)
    summary = summarize(result)
    folder.write_summary(summary)
    logging.getLogger("flwr").info("\n%s", summary)
