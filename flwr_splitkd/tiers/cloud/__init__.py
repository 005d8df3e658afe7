"""The cloud's runtime (SCCT): a frozen LLM, and a trained PEFT module for each task.

===============  ==================================================================
``llm``          `CloudLLM`, which owns the LLM and its tasks
``task``         `CloudTask`: differentiate, step, evaluate, generate, hand over
``settings``     what a task is configured with
``modules``      serial adapters and LoRA, so that one task at a time takes part
``state``        a task's state, looked at before it is loaded
``randomness``   first weights, and dropout that depends on a key alone
``checks``       what arrives, looked at before the LLM sees it
``service``      `CloudService`: edges' requests, one after another
``served``       a task with its commits
``store``        tasks on the disk
``counters``     what it has done so far, for whoever watches it
``setup``        from settings to an open cloud
``placement``    where the LLM computes
``config``       the same from ``cloud.toml``
``embedded``     the service as a process next to the edge
===============  ==================================================================
"""

from __future__ import annotations

from flwr_splitkd.tiers.cloud.embedded import EmbeddedCloud
from flwr_splitkd.tiers.cloud.llm import CloudLLM
from flwr_splitkd.tiers.cloud.placement import build_llm
from flwr_splitkd.tiers.cloud.service import CloudService
from flwr_splitkd.tiers.cloud.settings import TaskSettings
from flwr_splitkd.tiers.cloud.setup import CloudSetup, open_cloud
from flwr_splitkd.tiers.cloud.task import CloudTask, Differentiated, StepResult

__all__ = [
    "CloudLLM",
    "CloudService",
    "CloudSetup",
    "CloudTask",
    "Differentiated",
    "EmbeddedCloud",
    "StepResult",
    "TaskSettings",
    "build_llm",
    "open_cloud",
]
