"""Peak memory of a device in a turn: what `flwr_splitkd.costs` predicts beside what the kernel counted.

Llama-3.2-1B's shape in float32, the embedding tied and frozen, AdamW with moments handed over, and the embedding of a teacher of
Llama-3.2-3B's width. A fresh process takes a real turn over gRPC on loopback at each cut; measured is its peak resident memory
(``VmHWM``) less what it held after its imports, for the begin of the turn, its steps and its end. It gets the moments of another
device with its layers; with ``--first-visit`` it is measured as the first to train them too.

The other side is an edge that keeps nothing (`_memory_edge.py`), since device and edge together would need more than the memory of
an ordinary machine. ``--real-edge CUT`` measures a cut against the real one too, whose blocks above the cut are frozen. Beside them
the whole model, trained unsplit on the same batches; where it does not fit into ``--limit-gib``, two models of fewer blocks and the
straight line through them, which says so.

``--student`` and ``--teacher`` take another pair of the sizing tables (docs/how-to/operations.md), whose rows are compared with the
whole process then, the base included. Of the teacher a device has the embedding alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from _memory_edge import serve_turn
from _memory_models import STUDENTS, build_student
from _report import Row, report
from rich.table import Table

from flwr_splitkd.costs import RUNTIME_BYTES, DeviceMemory, Workload, device_memory, named_shape

_GIB = float(1 << 30)
BOUND = 0.25
STUDENT, TEACHER = "llama-3.2-1b", "llama-3.2-3b"
NUM_BLOCKS = 16
# Where the whole model has no room: two sizes that have, for a line.
FEWER_BLOCKS = (4, 8)


def main() -> None:
    """Measure, print the tables, write the JSON."""
    arguments = _arguments()
    workload = Workload(
        batch_size=arguments.batch_size,
        sequence_length=arguments.sequence_length,
        num_batches=arguments.steps,
        num_microbatches=arguments.num_microbatches,
        pipeline_depth=arguments.pipeline_depth,
        runtime_bytes=RUNTIME_BYTES,
    )
    predicted = device_memory(named_shape(arguments.student), named_shape(arguments.teacher), workload)
    rows, phases, found = [], _phases_table(), []
    for cut in arguments.cuts:
        for moments in (False, True) if arguments.first_visit else (True,):
            one = _device(arguments, cut, moments=moments)
            found.append(one)
            rows.append(_row(f"cut {cut}, {_words(moments)}", one, predicted, cut))
            _add_phases(phases, f"cut {cut}, {_words(moments)}", one, predicted, cut)
    for cut in arguments.real_edge:
        one = _beside_real_edge(arguments, cut)
        found.append(one)
        rows.append(_row(f"cut {cut}, {_words(False)}, real edge", one, predicted, cut))
        _add_phases(phases, f"cut {cut}, real edge", one, predicted, cut)
    notes = []
    if not arguments.no_whole:
        whole, words = _whole(arguments)
        found += whole
        notes.append(words)
    missed = [row.name for row in rows if row.ratio is not None and abs(row.ratio - 1) > BOUND]
    notes += [
        f"Bound: predicted within {BOUND:.0%} of measured, without the process's own base: "
        + (f"MISSED at {', '.join(missed)}." if missed else "met everywhere."),
        f"{arguments.student} < {arguments.teacher}, float32, {arguments.batch_size} x {arguments.sequence_length} tokens in "
        f"{arguments.num_microbatches} parts, {arguments.pipeline_depth} at once, {arguments.steps} steps, one thread; base after "
        f"the imports {min(one['base'] for one in found) / 1e6:.0f} to {max(one['base'] for one in found) / 1e6:.0f} MB, "
        f"RUNTIME_BYTES {RUNTIME_BYTES / 1e6:.0f} MB; value: measured, reference: predicted, both less their base.",
    ]
    tables = [phases, _process_table(found, predicted), _terms_table(predicted, arguments.cuts)]
    report("device_memory", rows, tables=tables, notes=notes, json_path=arguments.json, more={"measured": found})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows and every peak to this file as well")
    parser.add_argument("--student", choices=sorted(STUDENTS), default=STUDENT, help=f"({STUDENT})")
    parser.add_argument("--teacher", default=TEACHER, help=f"a name of the catalog of `flwr-splitkd plan` ({TEACHER})")
    parser.add_argument("--cuts", type=int, nargs="*", default=[1, 4, 8], help="(1 4 8)")
    parser.add_argument("--batch-size", type=int, default=4, help="samples in a step (4)")
    parser.add_argument("--sequence-length", type=int, default=128, help="tokens in a sample (128)")
    parser.add_argument("--steps", type=int, default=2, help="(2)")
    parser.add_argument("--num-microbatches", type=int, default=1, help="parts of a batch (1)")
    parser.add_argument("--pipeline-depth", type=int, default=1, help="parts that are under way at once (1)")
    parser.add_argument(
        "--first-visit", action="store_true", help="measure turns without moments to begin with as well"
    )
    parser.add_argument(
        "--real-edge", type=int, nargs="*", default=[1], help="cuts measured beside the real edge too (1)"
    )
    parser.add_argument(
        "--limit-gib", type=float, default=14.0, help="memory that all processes together may take (14)"
    )
    parser.add_argument("--no-whole", action="store_true", help="leave the unsplit model out")
    arguments = parser.parse_args()
    if (arguments.student, arguments.teacher) != (STUDENT, TEACHER) and not (
        arguments.no_whole and arguments.real_edge == []
    ):
        parser.error(f"another pair than {STUDENT} < {TEACHER} needs --no-whole and --real-edge without cuts")
    return arguments


def _words(moments: bool) -> str:
    return "with moments" if moments else "first visit"


@contextmanager
def _process(role: str) -> Iterator[subprocess.Popen[str]]:
    """A fresh worker."""
    here = Path(__file__).resolve().parent
    environment = dict(os.environ) | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{here.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    process = subprocess.Popen(
        [sys.executable, str(here / "_memory_worker.py"), role],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _hear(process: subprocess.Popen[str]) -> dict[str, Any]:
    line = cast(IO[str], process.stdout).readline()
    if not line:
        raise SystemExit(f"The worker {process.args!r} ended without an answer (exit code {process.wait()}).")
    return cast(dict[str, Any], json.loads(line))


def _tell(process: subprocess.Popen[str], job: dict[str, Any]) -> None:
    pipe = cast(IO[str], process.stdin)
    pipe.write(json.dumps(job) + "\n")
    pipe.flush()


def _job(arguments: argparse.Namespace, **more: Any) -> dict[str, Any]:
    names = ("batch_size", "sequence_length", "steps")
    return {name: getattr(arguments, name) for name in names} | more


def _device(arguments: argparse.Namespace, cut: int, *, moments: bool) -> dict[str, Any]:
    pipeline = {name: getattr(arguments, name) for name in ("num_microbatches", "pipeline_depth")}
    student, teacher = partial(build_student, name=arguments.student), named_shape(arguments.teacher)
    embedding = (teacher.vocab_size, teacher.embedding_width)
    serving = serve_turn(cut=cut, moments=moments, student=student, teacher_embedding=embedding, **pipeline)
    with serving as (address, handed), _process("device") as process:
        base = _hear(process)["base"]
        _tell(process, _job(arguments, address=address, student=arguments.student))
        answer = _hear(process)
    if handed.failures or answer["steps"] != arguments.steps or handed.steps != arguments.steps:
        raise SystemExit(f"The turn at cut {cut} took {answer['steps']} steps: {handed.failures}")
    one = {"cut": cut, "moments": moments, "base": base, **answer}
    one |= {"sent_bytes": handed.sent_bytes, "received_bytes": handed.received_bytes}
    print(json.dumps(one), file=sys.stderr, flush=True)
    return one


def _beside_real_edge(arguments: argparse.Namespace, cut: int) -> dict[str, Any]:
    with _process("edge") as edge, _process("device") as process:
        base = _hear(process)["base"]
        _hear(edge)
        _tell(edge, _job(arguments, cut=cut))
        _tell(process, _job(arguments, **_hear(edge)))
        answer, edge_answer = _hear(process), _hear(edge)
    one = {"cut": cut, "moments": False, "base": base, "edge": edge_answer, **answer}
    print(json.dumps(one), file=sys.stderr, flush=True)
    return one


def _whole(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """The unsplit model's peak, or the line through those of smaller ones."""
    shape = named_shape("llama-3.2-1b")
    # Weights, gradients and moments of all blocks, the embedding, and logits with their gradients in float32.
    tokens = arguments.batch_size * arguments.sequence_length
    needed = 4 * (4 * shape.block_parameters.sum() + shape.embedding_parameters + 4 * tokens * shape.vocab_size)
    fits = needed <= arguments.limit_gib * _GIB
    found = [_train_whole(arguments, blocks) for blocks in ((NUM_BLOCKS,) if fits else FEWER_BLOCKS)]
    peaks = [max(one["peaks"].values()) - one["base"] for one in found]
    if fits:
        return found, f"The whole model, unsplit, on the same batches: {peaks[0] / _GIB:.2f} GiB, measured."
    slope = (peaks[1] - peaks[0]) / (FEWER_BLOCKS[1] - FEWER_BLOCKS[0])
    whole = peaks[1] + slope * (NUM_BLOCKS - FEWER_BLOCKS[1])
    return found, (
        f"The whole model, unsplit, on the same batches: {whole / _GIB:.2f} GiB, NOT measured: about {needed / _GIB:.1f} GiB do "
        f"not fit into the {arguments.limit_gib:g} GiB of --limit-gib. It is the line through {FEWER_BLOCKS[0]} and "
        f"{FEWER_BLOCKS[1]} blocks, measured: {peaks[0] / _GIB:.2f} and {peaks[1] / _GIB:.2f} GiB."
    )


def _train_whole(arguments: argparse.Namespace, blocks: int) -> dict[str, Any]:
    with _process("whole") as process:
        base = _hear(process)["base"]
        _tell(process, _job(arguments, blocks=blocks))
        one = {"whole": blocks, "base": base, **_hear(process)}
    print(json.dumps(one), file=sys.stderr, flush=True)
    return one


def _row(name: str, one: dict[str, Any], predicted: DeviceMemory, cut: int) -> Row:
    measured = max(one["peaks"].values()) - one["base"]
    expected = float(predicted.peak[cut - 1] - predicted.runtime[cut - 1])
    return Row(name=name, value=measured / _GIB, unit="GiB", reference=expected / _GIB, ratio=expected / measured)


def _phases_table() -> Table:
    table = Table(title="GiB by phase of the turn, less the base: measured / predicted")
    for heading in ("", "begin", "steps", "end", "handed over", "handed in"):
        table.add_column(heading, justify="right" if heading else "left")
    return table


def _add_phases(table: Table, name: str, one: dict[str, Any], predicted: DeviceMemory, cut: int) -> None:
    parts = {"begin": predicted.begin, "steps": predicted.step, "end": predicted.end}
    cells = []
    for phase, values in parts.items():
        expected = float(values[cut - 1] - predicted.runtime[cut - 1])
        if phase == "begin" and not one["moments"]:
            expected -= float(predicted.moments[cut - 1])  # nobody has trained these layers yet
        cells.append(f"{(one['peaks'][phase] - one['base']) / _GIB:.2f} / {expected / _GIB:.2f}")
    carried = [f"{one[key] / _GIB:.2f}" if key in one else "" for key in ("sent_bytes", "received_bytes")]
    table.add_row(name, *cells, *carried)


def _process_table(found: Sequence[dict[str, Any]], predicted: DeviceMemory) -> Table:
    table = Table(title="the whole process, GB of 1e9 bytes: as in the sizing tables")
    for heading in ("", "measured", "predicted", "predicted / measured"):
        table.add_column(heading, justify="right" if heading else "left")
    for one in found:
        if "cut" in one:
            measured, expected = max(one["peaks"].values()), float(predicted.peak[one["cut"] - 1])
            name = f"cut {one['cut']}, {_words(one['moments'])}" + (", real edge" if "edge" in one else "")
            table.add_row(name, f"{measured / 1e9:.2f}", f"{expected / 1e9:.2f}", f"{expected / measured:.2f}")
    return table


def _terms_table(predicted: DeviceMemory, cuts: Sequence[int]) -> Table:
    table = Table(title="predicted, MB by term")
    every = {cut: predicted.at(cut) for cut in cuts}
    table.add_column("term")
    for cut in cuts:
        table.add_column(f"cut {cut}", justify="right")
    for term in every[cuts[0]] if cuts else ():
        table.add_row(term, *(f"{every[cut][term] / 1e6:,.0f}" for cut in cuts))
    table.add_row("peak", *(f"{predicted.peak[cut - 1] / 1e6:,.0f}" for cut in cuts))
    return table


if __name__ == "__main__":
    main()
