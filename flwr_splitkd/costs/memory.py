"""What a device holds in a turn, term by term, and at what moment it holds most.

With n tokens in a micro-batch, A micro-batches at once, and over the blocks ``i < c`` of the half: weights w_i, of which the share
s trains, k moments for each, b_w bytes a weight and b_a a value:

- held all the time: ``b_w (sum w_i + embedding + teacher) + k b_w (s sum w_i + trained embedding) + runtime``
- gradients: ``g_i = s b_w w_i``, and the embedding's if it trains
- activations: ``a_i = n b_a kept_i`` for each micro-batch, ``kept_i = t_i + S m_i``, t_i values a token and m_i a pair of tokens
  in samples of S tokens: see `kept_values`
- messages: ``A n (2 d b_a + token_bytes)``, smashed data and their gradient, and ``2 N d_t b_a``: teacher embeddings, as made
  and as sent, of all N tokens of a step, since those of the next step are sent ahead
- the backward pass: block by block activations go and gradients come. With one micro-batch at once it holds most at
  ``max_i (sum_{j >= i} g_j + sum_{j <= i} a_j)``; with more, earlier ones have left their gradients: ``sum g_j + A sum a_j``
- the optimiser's step: gradients, no activations, and two temporaries as large as the largest matrix
- begin and end of the turn: what is held, and the frames on their way. Weights and moments are decoded where they were received,
  taken over without a copy, and handed in from where they are, so that neither end takes more than a step does.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from flwr_splitkd.costs.kept import llama_kept
from flwr_splitkd.costs.shape import Float, ModelShape
from flwr_splitkd.costs.workload import Workload

__all__ = ["RUNTIME_BYTES", "DeviceMemory", "device_memory", "kept_values"]

RUNTIME_BYTES = 400e6
"""What a device's process takes beside the model: Python, torch, transformers, gRPC and Flower.

Measured by ``benchmarks/device_memory.py`` on x86-64 Linux with Python 3.11, torch 2.13 for the CPU, transformers 5.23 and
Flower 1.41: 395 MB resident after the imports. A build of torch for CUDA takes several times as much.
"""

# A frame as its bytes, as a message and as a chunk, on its way in gRPC's buffers; the largest is 1 MiB, a few are under way.
_FRAMES_BYTES = 16e6

# Share of a block that its largest matrix has: one of the three of a gated MLP.
_LARGEST_MATRIX = 0.3
_TEMPORARIES = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeviceMemory:
    """Bytes that a device holds, by what they are for. One value for each cut ``1 .. L-1``. Shape ``[L-1]``.

    Parameters
    ----------
    weights
        Of the blocks in its half.
    embedding
        The student's embeddings.
    teacher
        The teacher's token embedding.
    moments
        The optimiser's, of what trains.
    gradients
        Of what trains, all of them.
    activations
        What the blocks keep for the backward pass, of every micro-batch at once.
    messages
        Smashed data, their gradients and labels, of every micro-batch at once, and the teacher embeddings of a step.
    frames
        What the transport has under way.
    backward
        The most that gradients and activations take together.
    optimizer
        Gradients and temporaries in the optimiser's step.
    runtime
        The process without a model.
    """

    weights: Float
    embedding: Float
    teacher: Float
    moments: Float
    gradients: Float
    activations: Float
    messages: Float
    frames: Float
    backward: Float
    optimizer: Float
    runtime: Float

    @property
    def held(self) -> Float:
        """What is there from the turn's begin to its end. Shape ``[L-1]``."""
        return self.weights + self.embedding + self.teacher + self.moments + self.runtime

    @property
    def begin(self) -> Float:
        """The most while the half arrives. Shape ``[L-1]``."""
        return self.held + self.frames

    @property
    def step(self) -> Float:
        """The most within a step. Shape ``[L-1]``."""
        return self.held + np.maximum(self.backward + self.messages, self.optimizer)

    @property
    def end(self) -> Float:
        """The most while what trained is handed in. Shape ``[L-1]``."""
        return self.held + self.frames

    @property
    def peak(self) -> Float:
        """The most at any moment of the turn. Shape ``[L-1]``."""
        return np.maximum(np.maximum(self.begin, self.step), self.end)

    def at(self, cut: int) -> dict[str, float]:
        """Every term at one cut, in bytes, by its name.

        Parameters
        ----------
        cut
            1 .. L-1.
        """
        return {field.name: float(getattr(self, field.name)[cut - 1]) for field in fields(self)}


def device_memory(student: ModelShape, teacher: ModelShape | None, workload: Workload) -> DeviceMemory:
    """Work out what a device holds at every cut; the formulas are in this module's docstring.

    Parameters
    ----------
    student, teacher
        The device holds the teacher's token embedding; None without a teacher.
    workload
        What a turn has to do.
    """
    cuts = student.num_blocks - 1
    own = student.block_parameters[:-1] * workload.weight_bytes
    trained = own * workload.trained_share
    embedding = student.embedding_parameters * workload.weight_bytes
    trained_embedding = embedding * workload.train_embeddings
    in_step = workload.step_microbatches
    at_once = min(workload.pipeline_depth, in_step)
    tokens = workload.microbatch_tokens
    kept = kept_values(student, workload.sequence_length)[:-1] * tokens * workload.activation_bytes
    gradients = np.cumsum(trained) + trained_embedding
    each_message = tokens * (2 * student.hidden_size * workload.activation_bytes + workload.token_bytes)
    step_tokens = workload.batch_tokens * workload.gradient_accumulation_steps
    ahead = 2 * step_tokens * (teacher.embedding_width if teacher else 0) * workload.activation_bytes
    largest = np.maximum.accumulate(_LARGEST_MATRIX * trained)
    if workload.train_embeddings:
        largest = np.maximum(largest, embedding)
    teacher_weights = teacher.vocab_size * teacher.embedding_width if teacher else 0

    def everywhere(value: float) -> Float:
        return np.full(cuts, value, dtype=np.float64)

    return DeviceMemory(
        weights=np.cumsum(own),
        embedding=everywhere(embedding),
        teacher=everywhere(teacher_weights * workload.weight_bytes),
        moments=workload.memory_moments * gradients,
        gradients=gradients,
        activations=at_once * np.cumsum(kept),
        messages=everywhere(at_once * each_message + ahead),
        frames=everywhere(_FRAMES_BYTES if workload.runtime_bytes else 0.0),
        backward=_backward(trained, kept, at_once, in_step) + trained_embedding,
        optimizer=gradients + _TEMPORARIES * largest,
        runtime=everywhere(workload.runtime_bytes),
    )


def kept_values(shape: ModelShape, sequence_length: int = 0) -> Float:
    """Values that each block keeps for its backward pass, per token. Shape ``[L]``.

    Those that the shape has; without them what a block like Llama's keeps, from its FLOPs: `flwr_splitkd.costs.kept` has the terms.

    Parameters
    ----------
    shape
        The model.
    sequence_length
        Tokens in a sample, as many as each token makes pairs; 0 leaves out attention maps.
    """
    per_token = shape.block_kept_per_token
    if per_token is None:
        per_token = llama_kept(shape.block_flops_per_token, shape.block_flops_per_pair, shape.hidden_size)
    return per_token if shape.block_kept_per_pair is None else per_token + sequence_length * shape.block_kept_per_pair


def _backward(gradients: Float, kept: Float, at_once: int, in_step: int) -> Float:
    """The most that gradients and activations take together, at every cut. Shape ``[L-1]``."""
    if in_step > 1:  # the gradients of those before are there throughout
        return np.asarray(np.cumsum(gradients) + at_once * np.cumsum(kept), dtype=np.float64)
    below = np.cumsum(kept)
    most = np.zeros_like(below)
    for cut in range(1, len(kept) + 1):
        came = np.cumsum(gradients[:cut][::-1])[::-1]  # from the cut downwards
        most[cut - 1] = np.max(came + below[:cut])
    return most
