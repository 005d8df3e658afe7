"""What the codecs cost and lose, and how near a tensor's way through the wire comes to a bare protobuf message.

Rate: a float32 tensor to the bytes that gRPC is given and back to a tensor, one thread, frame by frame as on the wire, CRC-32
of every chunk computed and checked; beside one protobuf message with one bytes field of equal size, serialized and parsed.
Its payload is already in it and stays in it. The same frames by protobuf's generated classes stand beside it too. All this with
the allocator as it comes, and again where it keeps what is freed: large buffers then cost no page faults, of which the
bare message has the most. Over gRPC on loopback: such a tensor there and another back, both ends in this process,
beside an echo of bare messages.

Copies: bytes allocated for each byte of the payload, by tracemalloc, stage by stage; torch's own allocations are not in it, so
there it is whether the memory is shared.

Codecs: bytes, seconds of a 16 MiB float32 tensor beside a plain copy of it, relative error (L2) on Gaussian values and on what
crosses the cut of a student of the quality benchmark in training; perplexity of that student trained with int8, beside none, and
beside none with smashed data changed by a millionth: so far does its training stray by itself.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from _codec_loopback import bare_exchange, our_exchange
from _codec_training import ARMS, train
from _quality_tasks import Scale
from _report import Row, report
from google.protobuf.wrappers_pb2 import BytesValue
from rich.table import Table
from torch import Tensor

from flwr_splitkd.wire import checksum, framing
from flwr_splitkd.wire.chunk_frame import parse_frame, serialize_frame
from flwr_splitkd.wire.codec import CodecName, codec_code, decode, encode, round_trip
from flwr_splitkd.wire.feedback import ErrorFeedback
from flwr_splitkd.wire.framing import Assembler, Limits, to_frames
from flwr_splitkd.wire.tensors import EncodedTensor
from flwr_splitkd.wire.v1 import dataplane_pb2 as pb

SHAPES = {"1 MiB": (4, 64, 1024), "16 MiB": (4, 512, 2048)}
# See issue and benchmarks/README.md.
RATE_BOUND, INT8_BYTES_BOUND, PERPLEXITY_BOUND = 0.8, 0.26, 0.01
# Each side of a pair lasts at least as long as this many bytes take.
LEAST_BYTES = 32 << 20
SUMMED = 16
LIMITS = Limits()

Seconds = tuple[list[float], list[float], list[float]]
# glibc's names of what `mallopt` sets.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def main() -> None:
    """Measure everything, print the tables, write the JSON."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    notes: list[str] = []
    tables: list[Table] = []
    if arguments.no_rates:
        notes.append("rates, copies and bytes: left out (--no-rates)")
    else:
        rows, notes, tables = _wire(arguments.pairs)
    training_rows, training_notes, crossed = _training(arguments)
    rows += training_rows
    notes += training_notes
    tables.append(_errors_table(crossed))
    about = (
        f"torch {torch.__version__}, {arguments.threads} thread(s); processor time of the one thread, but over gRPC the clock's; "
        "value and reference: medians, ratio: median of the pairs' ratios, of rates where the unit is one; spread: their "
        "quartile distance."
    )
    name = "codec" + (" (quick: a smoke test, not a measurement)" if arguments.quick else "")
    report(name, rows, tables=tables, notes=[about, *notes], json_path=arguments.json)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    parser.add_argument("--quick", action="store_true", help="a smoke test: 5 pairs, toy models, 1 seed")
    parser.add_argument("--pairs", type=int, default=15, help="alternating pairs of each ratio (15)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (1)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the training, 0 to leave it out (3)")
    parser.add_argument("--no-rates", action="store_true", help="the training alone")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pairs, arguments.seeds = 5, min(arguments.seeds, 1)
    return arguments


def _wire(pairs: int) -> tuple[list[Row], list[str], list[Table]]:
    rows, notes = _rate_rows(pairs, "")
    rows += _loopback_rows(pairs)
    codec_rows, byte_notes = _codec_rows(pairs)
    if _keep_freed_memory():
        kept_rows, kept_notes = _rate_rows(pairs, ", freed memory kept")
        return (
            rows + codec_rows + kept_rows,
            notes + byte_notes + kept_notes,
            [_copies_table(), _codecs_table(codec_rows)],
        )
    return rows + codec_rows, notes + byte_notes, [_copies_table(), _codecs_table(codec_rows)]


# ---- rate


def through_wire(tensor: Tensor) -> Tensor:
    """Encode, frame, serialize, parse, assemble, decode."""
    assembler = Assembler(LIMITS, "the benchmark")
    for sequence, frame in enumerate(to_frames(pb.UplinkFrame, pb.Forward(), {"t": encode(tensor)}, LIMITS)):
        frame.sequence = sequence
        message = assembler.feed(parse_frame(pb.UplinkFrame, serialize_frame(frame)))
    if message is None:
        raise RuntimeError("The message is not complete.")
    return decode(message.tensors["t"])


def through_generated_classes(tensor: Tensor) -> Tensor:
    """The same frames by protobuf's own classes."""
    encoded, limit = encode(tensor), LIMITS.chunk_bytes
    payload, received = memoryview(encoded.payload), bytearray()
    for index, start in enumerate(range(0, len(payload), limit)):
        data = bytes(payload[start : start + limit])
        frame = pb.UplinkFrame(sequence=index + 1)
        frame.chunks.add(index=index, data=data, crc32=framing.crc32(data))
        chunk = pb.UplinkFrame.FromString(frame.SerializeToString()).chunks[0]
        data = chunk.data
        if framing.crc32(data) != chunk.crc32:
            raise RuntimeError("The bytes were altered.")
        received += data
    return decode(EncodedTensor(encoded.dtype, encoded.shape, encoded.codec, received))


def _rate_rows(pairs: int, conditions: str) -> tuple[list[Row], list[str]]:
    rows, notes = [], []
    for size, shape in SHAPES.items():
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        bare = BytesValue(value=tensor.numpy().tobytes())
        if not torch.equal(through_wire(tensor), tensor) or not torch.equal(through_generated_classes(tensor), tensor):
            raise RuntimeError("What came back is not what was sent.")

        def against_bare(call: Callable[[Tensor], Tensor], tensor: Tensor = tensor, bare: BytesValue = bare) -> Seconds:
            inner = max(1, LEAST_BYTES // tensor.nbytes)
            reference = lambda: BytesValue.FromString(bare.SerializeToString())  # noqa: E731
            return _paired(lambda: call(tensor), reference, pairs, inner=inner, clock=time.thread_time)

        for name, crc32 in _checksums().items():
            framing.crc32 = crc32
            row = _rate_row(
                f"{size}: array to bytes and back, {name}{conditions}", against_bare(through_wire), tensor.nbytes
            )
            rows.append(row)
            if crc32 is not _no_checksum:
                ratio = row.ratio or 0.0
                met = "met" if ratio >= RATE_BOUND else "missed"
                notes.append(f"{row.name}: ratio {ratio:.2f}, bound {RATE_BOUND}: {met}")
        framing.crc32 = checksum.crc32
        name = f"{size}: the same frames by generated classes{conditions}"
        rows.append(_rate_row(name, against_bare(through_generated_classes), tensor.nbytes))
    return rows, notes


def _loopback_rows(pairs: int) -> list[Row]:
    rows = []
    for size, shape in SHAPES.items():
        tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        inner = max(1, LEAST_BYTES // tensor.nbytes // 2)
        with our_exchange(tensor, pb.CODEC_NONE) as exchange, bare_exchange(tensor.numpy().tobytes()) as echo:
            taken = _paired(exchange, echo, pairs, inner=inner)
        rows.append(_rate_row(f"{size}: there and back over gRPC on loopback", taken, 2 * tensor.nbytes))
    return rows


def _checksums() -> dict[str, Callable[[Any], int]]:
    """By name; the last is no mode of the product, but shows what the copies alone cost."""
    fastest = {f"CRC-32 by {checksum.implementation}": checksum.crc32}
    return {**fastest, "CRC-32 by zlib": zlib.crc32, "no CRC-32 at all": _no_checksum}


def _no_checksum(_: object) -> int:
    return 1


def _keep_freed_memory() -> bool:
    """Let glibc keep what is freed, up to 32 MiB a piece, instead of giving it back and faulting it in again page by page."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, 32 << 20) and mallopt(_M_TRIM_THRESHOLD, 1 << 30))


def _paired(
    one: Callable[[], object],
    other: Callable[[], object],
    pairs: int,
    *,
    inner: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Seconds:
    """Seconds of one call of each, in turn; what goes first changes from pair to pair, and a first pair does not count."""
    taken: dict[Callable[[], object], list[float]] = {one: [], other: []}
    for pair in range(pairs + 1):
        for call in (one, other) if pair % 2 else (other, one):
            started_s = clock()
            for _ in range(inner):
                call()
            taken[call].append((clock() - started_s) / inner)
    ours, theirs = taken[one][1:], taken[other][1:]
    return ours, theirs, [x / y for x, y in zip(ours, theirs, strict=True)]


def _rate_row(name: str, seconds: Seconds, num_bytes: int) -> Row:
    ours, theirs, of_seconds = seconds
    ratios = [1 / ratio for ratio in of_seconds]
    return Row(
        name=name,
        value=num_bytes / 2**20 / statistics.median(ours),
        unit="MiB/s",
        reference=num_bytes / 2**20 / statistics.median(theirs),
        ratio=statistics.median(ratios),
        spread=_quartile_distance(ratios),
        n=len(ratios),
    )


def _quartile_distance(values: Sequence[float]) -> float:
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return quartiles[2] - quartiles[0]


# ---- copies


def copies() -> list[tuple[str, float]]:
    """Bytes allocated for a byte of the payload in each stage, codec none."""
    tensor = torch.randn(SHAPES["16 MiB"])
    size = tensor.nbytes
    encoded = encode(tensor)
    stages = [("encode: the tensor's own memory", float(np.asarray(encoded.payload).ctypes.data != tensor.data_ptr()))]
    tracemalloc.start()
    try:
        frames, framed = _allocated(lambda: list(to_frames(pb.UplinkFrame, pb.Forward(), {"t": encoded}, LIMITS)))
        serialized, joined, parsed, assembled = [], 0, 0, 0
        assembler, message = Assembler(LIMITS, "the benchmark"), None
        for sequence, frame in enumerate(frames):
            frame.sequence = sequence
            one, num_bytes = _allocated(lambda f=frame: serialize_frame(f))  # type: ignore[misc]
            joined += num_bytes
            serialized.append(one)
        for one in serialized:
            got, num_bytes = _allocated(lambda b=one: parse_frame(pb.UplinkFrame, b))  # type: ignore[misc]
            parsed += num_bytes
            message, num_bytes = _allocated(lambda f=got: assembler.feed(f))  # type: ignore[misc]
            assembled += num_bytes
    finally:
        tracemalloc.stop()
    if message is None:
        raise RuntimeError("The message is not complete.")
    received = message.tensors["t"]
    shared = decode(received).data_ptr() == np.asarray(received.payload).ctypes.data
    stages += [("frames: views", framed / size), ("serialize: one join a frame", joined / size)]
    stages += [("parse: views", parsed / size), ("assemble: the tensor's memory", assembled / size)]
    return [*stages, ("decode: the received memory", float(not shared))]


def _allocated(stage: Callable[[], Any]) -> tuple[Any, int]:
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    result = stage()
    return result, tracemalloc.get_traced_memory()[1] - before


def _copies_table() -> Table:
    table = Table("stage", title="Bytes allocated for a byte of payload, codec none, 16 MiB")
    table.add_column("copies", justify="right")
    stages = copies()
    for name, value in stages:
        table.add_row(name, f"{value:.2f}")
    table.add_row("together, without gRPC's own", f"{sum(value for _, value in stages):.2f}")
    return table


# ---- codecs


def _codec_rows(pairs: int) -> tuple[list[Row], list[str]]:
    tensor = torch.randn(SHAPES["16 MiB"], generator=torch.Generator().manual_seed(0))
    rows, notes = [], []
    for name in get_args(CodecName):
        code = codec_code(name)
        encoded = encode(tensor, code)
        share = len(encoded.payload) / tensor.nbytes
        rows.append(
            Row(name=f"{name}: bytes", value=share * tensor.nbytes, unit="B", reference=tensor.nbytes, ratio=share)
        )
        if name == "int8":
            met = "met" if share <= INT8_BYTES_BOUND else "missed"
            notes.append(f"int8: bytes ratio {share:.4f}, bound {INT8_BYTES_BOUND}: {met}")
        if name == "none":
            continue  # nothing is computed: the copies say what it costs
        for what, call in (("encode", lambda c=code: encode(tensor, c)), ("decode", lambda e=encoded: decode(e))):
            ours, copy, ratios = _paired(call, tensor.clone, pairs, clock=time.thread_time)
            rows.append(
                Row(
                    name=f"{name}: {what} 16 MiB of float32, against a copy",
                    value=statistics.median(ours),
                    unit="s",
                    reference=statistics.median(copy),
                    ratio=statistics.median(ratios),
                    spread=_quartile_distance(ratios),
                    n=len(ratios),
                )
            )
    return rows, notes


def _codecs_table(rows: Sequence[Row]) -> Table:
    table = Table("codec", title="Codecs: 16 MiB of float32, and times a copy of it")
    for column in ("bytes", "encode", "decode"):
        table.add_column(column, justify="right")
    by_name = {row.name: row for row in rows}
    for name in get_args(CodecName):
        cells = [f"{by_name[f'{name}: bytes'].ratio:.3f}"]
        for what in ("encode", "decode"):
            row = by_name.get(f"{name}: {what} 16 MiB of float32, against a copy")
            cells.append("a view" if row is None else f"{1e3 * row.value:.1f} ms, {row.ratio:.1f} x")
        table.add_row(name, *cells)
    return table


def relative_errors(tensors: Sequence[Tensor], codec: int, *, feedback: bool) -> tuple[float, float]:
    """L2 error over L2 norm: the mean of all tensors, and of their sum."""
    residuals, received = ErrorFeedback(), []
    for tensor in tensors:
        received.append(decode(residuals.encode(tensor, codec)) if feedback else round_trip(tensor, codec))
    single = statistics.mean(float((r - t).norm() / t.norm()) for r, t in zip(received, tensors, strict=True))
    meant, got = torch.stack(list(tensors)).double().sum(0), torch.stack(received).double().sum(0)
    return single, float((got - meant).norm() / meant.norm())


def _errors_table(crossed: dict[str, list[Tensor]]) -> Table:
    table = Table("codec", "values", title=f"Relative error (L2): of one tensor, and of the sum of {SUMMED} in a row")
    for column in ("one", "sum", "one, feedback", "sum, feedback"):
        table.add_column(column, justify="right")
    generator = torch.Generator().manual_seed(1)
    values = {"Gaussian": [torch.randn(8, 48, 96, generator=generator) for _ in range(SUMMED)], **crossed}
    for name in get_args(CodecName)[1:]:
        for what, tensors in values.items():
            errors = [relative_errors(tensors, codec_code(name), feedback=feedback) for feedback in (False, True)]
            table.add_row(name, what, *(f"{error:.2e}" for pair in errors for error in pair))
    return table


# ---- training


def _training(arguments: argparse.Namespace) -> tuple[list[Row], list[str], dict[str, list[Tensor]]]:
    if not arguments.seeds:
        return [], ["training: left out (--seeds 0)"], {}
    with tempfile.TemporaryDirectory(prefix="codec-") as folder:
        scale = Scale.quick() if arguments.quick else Scale()
        perplexities, exact = train(scale, Path(folder), arguments.seeds, _say)
    rows, notes = [], []
    for arm in ARMS[1:]:
        ratios = [one / none for one, none in zip(perplexities[arm.name], perplexities["none"], strict=True)]
        rows.append(
            Row(
                name=f"perplexity: {arm.name}",
                value=statistics.mean(perplexities[arm.name]),
                unit="perplexity",
                reference=statistics.mean(perplexities["none"]),
                ratio=statistics.median(ratios),
                spread=_quartile_distance(ratios) if len(ratios) > 1 else None,
                n=len(ratios),
            )
        )
        if arm.codec == "int8":
            within = "met" if abs(statistics.median(ratios) - 1) <= PERPLEXITY_BOUND else "missed"
            each = ", ".join(f"{ratio:.4f}" for ratio in ratios)
            notes.append(
                f"{rows[-1].name}: ratios by seed {each}; bound within {PERPLEXITY_BOUND:.0%} of none: {within}"
            )
    shape = exact.smashed[-1].shape
    same = {"smashed data": exact.smashed, "gradient at the cut": exact.gradients}
    return rows, notes, {what: [t for t in tensors if t.shape == shape][-SUMMED:] for what, tensors in same.items()}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
