"""The whole model trained as if it were split, with what would cross the cut rounded as on the wire.

That a split turn with a codec trains the very weights of the unsplit model with the same rounding is a test of the product
(`tests/integration/test_split_equals_unsplit.py`), so one process shows what a codec does to the student. Text, models, turns
and cuts are those of the quality benchmark: 5 devices take turns, each at its own cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from _quality_runs import CUTS, KD_RATIO, WARMUP_STEPS, prepare_worker
from _quality_tasks import Scale, Task, load_task
from _quality_training import Recipe, Turn, unsplit
from torch import Tensor, nn

from flwr_splitkd.processes import worker_processes
from flwr_splitkd.split import find_layout
from flwr_splitkd.tiers.optimizer import warmup_schedule
from flwr_splitkd.wire.codec import CodecName, codec_code, decode
from flwr_splitkd.wire.feedback import ErrorFeedback

__all__ = ["ARMS", "Arm", "Crossing", "train"]

# The best of the quality benchmark's grid for split KD.
LEARNING_RATE = 0.003
# A turn's steps, so that what is kept is of one device at one cut.
KEPT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What happens at the cut, the same in both directions.

    Parameters
    ----------
    name
        For the tables.
    codec
        Of smashed data, teacher embeddings and gradients.
    disturbance
        Relative change of all smashed data, to see how far training strays for no reason.
    feedback_up, feedback_down
        Whether what is left out is added to the next batch's: smashed data and teacher embeddings; the gradient.
    """

    name: str
    codec: CodecName = "none"
    disturbance: float = 0.0
    feedback_up: bool = False
    feedback_down: bool = False


ARMS = (
    Arm(name="none"),
    Arm(name="none, smashed data disturbed by a millionth", disturbance=1e-6),
    Arm(name="int8 both ways", codec="int8"),
    Arm(name="int8 both ways, feedback on the gradient", codec="int8", feedback_down=True),
    Arm(name="int8 both ways, feedback both ways", codec="int8", feedback_up=True, feedback_down=True),
)


class Crossing:
    """Rounds what crosses the cut; the last few smashed data and gradients, as they were meant, are kept to be looked at."""

    def __init__(self, arm: Arm) -> None:
        self.smashed: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self._arm, self._codec, self._cut = arm, codec_code(arm.codec), 0
        self._up, self._down = ErrorFeedback(), ErrorFeedback()

    def turns(self, turns: Iterable[Turn]) -> Iterator[Turn]:
        """The same turns; each begins without residuals, at its own cut."""
        for turn in turns:
            self._cut = turn.cut
            self._up.reset()
            self._down.reset()
            yield turn

    def student(self, model: nn.Module) -> nn.Module:
        """The model, with every block that a cut may follow listened to."""
        for cut, name in enumerate(find_layout(model).block_names, start=1):
            model.get_submodule(name).register_forward_hook(self._after_block(cut))
        return model

    def teacher(self, model: nn.Module) -> nn.Module:
        """The model, with its embeddings rounded."""
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        embedding.register_forward_hook(lambda _, __, out: self.up(out, "teacher_embeddings"))
        return model

    def up(self, tensor: Tensor, kind: str) -> Tensor:
        """What the edge gets of a tensor."""
        if not self._arm.feedback_up:
            self._up.reset()
        return decode(self._up.encode(tensor, self._codec, kind)).clone()

    def down(self, gradient: Tensor) -> Tensor:
        """What the device gets of the gradient."""
        if not self._arm.feedback_down:
            self._down.reset()
        _keep(self.gradients, gradient)
        return decode(self._down.encode(gradient, self._codec, "gradient")).clone()

    def _after_block(self, cut: int) -> Callable[[nn.Module, object, Tensor], Tensor | None]:
        def hook(module: nn.Module, _: object, hidden: Tensor) -> Tensor | None:
            if cut != self._cut or not module.training:
                return None
            _keep(self.smashed, hidden)
            crossed: Tensor = _Cut.apply(hidden * (1 + self._arm.disturbance), self)
            return crossed

        return hook


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, hidden: Tensor, crossing: Crossing) -> Tensor:
        ctx.crossing = crossing  # type: ignore[attr-defined]
        return crossing.up(hidden, "smashed")

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.crossing.down(gradient), None  # type: ignore[attr-defined]


def train(
    scale: Scale, folder: Path, seeds: int, say: Callable[[str], None]
) -> tuple[dict[str, list[float]], Crossing]:
    """Train every arm with every seed, in the same order of the same text; each in a process and on a thread of its own.

    Returns
    -------
    dict of str to list of float
        Held-out perplexity by arm, seed by seed.
    Crossing
        Of the last run without a codec.
    """
    # Trained here, once, unless the cache has it.
    load_task("lm", scale, folder, lambda step, steps, _: say(f"teacher: step {step} of {steps}"))
    cases = [(arm, seed) for seed in range(seeds) for arm in ARMS]
    perplexities: dict[str, list[float]] = {arm.name: [] for arm in ARMS}
    with worker_processes(partial(prepare_worker, folder)) as pool:
        for (arm, seed), (perplexity, crossing) in zip(
            cases, pool.map(partial(_trained, scale, folder), cases), strict=True
        ):
            perplexities[arm.name].append(perplexity)
            say(f"seed {seed}, {arm.name}: perplexity {perplexity:.4f}")
            if arm == ARMS[0]:
                exact = crossing
    return perplexities, exact


def _trained(scale: Scale, folder: Path, case: tuple[Arm, int]) -> tuple[float, Crossing]:
    arm, seed = case
    crossing = Crossing(arm)
    return _perplexity(load_task("lm", scale, folder), scale, crossing, seed), crossing


def _perplexity(task: Task, scale: Scale, crossing: Crossing, seed: int) -> float:
    listened = replace(
        task,
        student=lambda of: crossing.student(task.student(of)),
        teacher=lambda: crossing.teacher(task.teacher()),
    )
    recipe = Recipe(
        learning_rate=LEARNING_RATE,
        schedule=warmup_schedule("constant_with_warmup", num_warmup_steps=WARMUP_STEPS, num_training_steps=1),
        kd_ratio=KD_RATIO,
        handover="full",
        seed=seed,
    )
    weights = unsplit(listened, recipe, crossing.turns(_turns(task, scale, seed)), lambda *_: None)
    student = task.student(seed)
    student.load_state_dict(weights)
    return task.figure(student, task.heldout)


def _turns(task: Task, scale: Scale, seed: int) -> Iterator[Turn]:
    for server_round in range(1, scale.rounds + 1):
        for device, text in enumerate(task.train):
            batches = list(task.loader(text, (seed * 1000 + server_round) * 100 + device, scale.turn_steps))
            yield Turn(server_round=server_round, device=device, cut=CUTS[device % len(CUTS)], batches=batches)


def _keep(where: list[Tensor], tensor: Tensor) -> None:
    where.append(tensor.detach().clone())
    del where[:-KEPT]
