"""Measure how long each step of a trained model takes on this machine, including the slow tail; anytime.Predictor plans
with these times.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from anytime.commands.parser import Parser
from anytime.model import known_input_size
from anytime.pretrained import load
from anytime.reporting.tables import Column, format_table
from anytime.runtime import Profile, profile
from anytime.support.locks import only_writer
from anytime.support.model_files import digest_of
from anytime.support.text import printable
from anytime.support.units import macs_text, ms_text

COLUMNS = (
    Column("step", "step"),
    Column("macs", "MACs", macs_text),
    *(Column(key, f"{key} ms", ms_text) for key in ("p50", "p90", "p99", "p999", "max")),
    Column("reached", "answer at p99", ms_text),
)


def run(arguments: Sequence[str]) -> int:
    parser = Parser(
        "profile",
        __doc__,
        "  anytime profile fast_cifar10\n  anytime profile runs/demo --batch 1,8,32 --threads 1 --repeats 1000\n"
        "  anytime profile runs/demo --compile",
    )
    parser.add_model("model")
    parser.add_argument("--batch", default="1", metavar="N,N", help="batch sizes (default: 1)")
    parser.add_argument("--threads", type=int, help="threads to compute with (default: torch's)")
    parser.add_argument("--repeats", type=int, default=1000, help="streams to time (default: 1000)")
    parser.add_argument("--compile", action="store_true", help="compile each step first, which takes a minute or so")
    parser.add_device()
    parser.add_argument("--out", type=Path, help="the JSON file (default: profile.json in the run directory or runs/NAME)")
    parser.add_overwrite("the profile of --out")
    options = parser.parse_args(arguments)
    if options.repeats < 1 or (options.threads is not None and options.threads < 1):
        parser.error(f"--repeats and --threads must be at least 1, got {options.repeats} and {options.threads}")
    sizes = options.batch.split(",")
    if not all(size.isdigit() and int(size) > 0 for size in sizes):
        parser.error(f"--batch must be numbers like 1,8,32, got {options.batch!r}")
    parser.check_model(options.model)
    parser.check_device(options.device)
    from anytime.reporting.evaluation import output_folder

    folder = output_folder(options.model)
    out = options.out or folder / "profile.json"
    replace = options.overwrite or not options.out
    _check_out(parser, out, replace)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    here = folder.is_dir() or not options.out
    with only_writer(folder, "a profile", writes=not options.out) if here else contextlib.nullcontext():
        measured = _measure(options, folder, [int(size) for size in sizes])
        _check_out(parser, out, replace)  # what is there now
        measured.save(out, replace)
    how = "compiled, " if options.compile else ""
    for batch, latencies in measured.batches.items():
        where = measured.fingerprint["hardware"]
        print(f"batch {batch}, {how}{where}, n = {options.repeats}: each step by itself, and its answer")
        steps = zip(measured.macs, latencies.steps, latencies.reached, strict=True)
        rows = [{"step": t, "macs": m, "reached": r.p99, **s._asdict()} for t, (m, s, r) in enumerate(steps, 1)]
        print(format_table(rows, COLUMNS))
    compiled = ", compile=True" if options.compile else ""
    print(printable(f"wrote {out}; Predictor(model, anytime.Profile.load({str(out)!r}){compiled}) plans with it"))
    return 0


def _measure(options: Any, folder: Path, batches: list[int]) -> Profile:
    """Measures a model.

    Raises:
        ValueError: Its weights in `folder` have been replaced meanwhile.
    """
    before = digest_of(folder)
    model = load(options.model, options.trust).to(options.device)
    size = known_input_size(model) or (model.in_channels, 32, 32)
    shown = sys.stderr.isatty()
    measured = profile(model, size, batches, options.repeats, compile=options.compile, progress=shown)
    if digest_of(folder) != before:
        raise ValueError(f"the weights in {folder} were replaced while they were measured; profile the model again")
    return measured


def _check_out(parser: Parser, out: Path, overwrite: bool) -> None:
    """Ends the command if something other than a profile would be replaced, or a profile without `overwrite`."""
    try:
        if out.exists():
            Profile.load(out)
    except (OSError, ValueError):
        parser.error(f"{out} exists and is not a profile, so it is not replaced; give another --out")
    parser.check_free(out, "--out", overwrite)
