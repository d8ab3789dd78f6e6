"""Run stages on mutated files in forked processes with limits, and count the outcomes.

`scripts/fuzz_media.py` mutates videos and audio, `scripts/fuzz_files.py` mutates the files that
talker itself writes. A mutated file may be accepted or refused with a clear message; a traceback, a
crash, a hang, too much memory or a file that is left behind is a fault.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from talker.core.boundary import OUT_OF_MEMORY, explain
from talker.core.parallel import usable_cores

SECONDS = 10
"""Limit of the processor time of a run in seconds, which does not depend on other programs."""
IDLE_FACTOR = 6
"""Limit of the wall-clock time of a run, as a multiple of `SECONDS`."""
MEMORY = 2 << 30
"""Memory limit of a run in bytes."""
PROGRESS_SECONDS = 60
"""Time between two lines of progress in seconds."""
OUTCOMES = "accepted", "refused", "silent", "traceback", "crash", "hang", "memory", "leftover"
"""How a run may end. `silent` means that a mutation that changes the meaning was accepted."""
FAULTS = OUTCOMES[2:]
EXIT_CODES = {0: "accepted", 1: "refused", 2: "traceback", 3: "memory"}
"""Outcome for each exit code of the forked process; any other code is a crash."""


@dataclass(frozen=True)
class Case:
    """One mutation: its kind, its number, and the seed file that it is made from."""

    kind: str
    number: int
    seed: Path


@dataclass(frozen=True)
class Run:
    """One stage to run on a mutated file."""

    stage: str
    work: Callable[[Path], object]
    """runs the stage; its argument is an empty folder for the outputs"""
    leaves_nothing: bool = True
    """whether the output folder must be empty after a refusal"""
    must_refuse: bool = False
    """whether accepting the mutation is a fault"""


@dataclass(frozen=True)
class Result:
    """The outcome of one stage on one mutation."""

    case: Case
    stage: str
    outcome: str
    seconds: float
    detail: str


Prepare = Callable[[Case, Path], tuple[Path, Sequence[Run]]]
"""Makes the mutation of a case in an empty folder; returns the mutated file and the runs."""


def run_case(case: Case, prepare: Prepare, keep: Path | None) -> list[Result]:
    """Make a mutation and run its stages on it, each in a forked process."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name) / "in"
        folder.mkdir()
        path, runs = prepare(case, folder)
        results = []
        for number, run in enumerate(runs):
            out = Path(name) / f"{number}-{run.stage}"
            out.mkdir()
            results.append(run_limited(case, run, out))
        if keep and any(result.outcome in FAULTS for result in results) and path.is_file():
            target = keep / f"{case.number:05d}-{case.kind.replace(' ', '_')}-{path.name}"
            shutil.copyfile(path, target)
        return results


def run_limited(case: Case, run: Run, out: Path) -> Result:
    """Run a stage in a forked process with limits of time and memory, and classify how it ends."""
    log = out.parent / f"{out.name}.log"
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _work_and_exit(run, out, log)
    usage, status = None, 0
    while usage is None and time.monotonic() - start < IDLE_FACTOR * SECONDS:
        done, status, used = os.wait4(child, os.WNOHANG)
        usage = used if done else None
        time.sleep(0.005)
    taken = time.monotonic() - start
    if usage is None:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return Result(case, run.stage, "hang", taken, "")
    text = log.read_text(errors="replace", encoding="utf-8") if log.exists() else ""
    outcome = EXIT_CODES.get(os.waitstatus_to_exitcode(status), "crash")
    left = [path.name for path in out.iterdir() if not path.name.startswith(".")]
    left += [path.name for path in out.glob(".*.talker-*")]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        outcome = "hang"
    elif usage.ru_maxrss * 1024 > MEMORY:
        outcome, text = "memory", f"{usage.ru_maxrss >> 10} MiB"
    elif outcome == "accepted" and run.must_refuse:
        outcome = "silent"
    elif outcome == "refused" and run.leaves_nothing and left:
        outcome, text = "leftover", str(left)
    return Result(case, run.stage, outcome, taken, text.strip())


def _work_and_exit(run: Run, out: Path, log: Path) -> None:
    code = 2
    try:
        os.setsid()
        with log.open("w", encoding="utf-8") as file:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
            used = pages * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            code = _work(run, out)
            file.flush()
    finally:
        os._exit(code)


def _work(run: Run, out: Path) -> int:
    """Run a stage and return its exit code; print the message as the command does."""
    try:
        run.work(out)
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException as error:
        message = explain(error, run.stage)
        if message is None or message == OUT_OF_MEMORY:
            traceback.print_exc()
            return 2 if message is None else 3
        print(message, flush=True)
        return 1
    return 0


def report(results: Sequence[Result], groups: dict[str, Callable[[Result], str]]) -> str:
    """Return a table of outcomes as Markdown for each group.

    Args:
        results: results of all runs.
        groups: heading of the first column, and the row that a result belongs to.
    """
    return "\n\n".join(_table(results, name, row_of) for name, row_of in groups.items())


def _table(results: Sequence[Result], name: str, row_of: Callable[[Result], str]) -> str:
    lines = [
        f"| {name} | runs | {' | '.join(OUTCOMES)} | slowest |",
        f"|---|{'---|' * (len(OUTCOMES) + 2)}",
    ]
    rows = dict.fromkeys(row_of(result) for result in results)
    for row in [*rows, "all"]:
        chosen = [result for result in results if row in (row_of(result), "all")]
        counts = Counter(result.outcome for result in chosen)
        slowest = max((result.seconds for result in chosen), default=0)
        cells = " | ".join(str(counts[outcome]) for outcome in OUTCOMES)
        lines.append(f"| {row} | {len(chosen)} | {cells} | {slowest:.1f} s |")
    return "\n".join(lines)


def arguments(description: str | None) -> argparse.Namespace:
    """Parse the command line that both fuzzers share."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=1000, help="Number of mutations.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the mutations.")
    parser.add_argument("--first", type=int, default=0, help="Index of the first mutation to run.")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="Number of parallel runs.")
    parser.add_argument("--keep", type=Path, help="Folder for the files that cause a fault.")
    parser.add_argument(
        "--results",
        type=Path,
        help="File with the result of each mutation. Mutations in this file are not run again.",
    )
    return parser.parse_args()


def fuzz(
    cases: Iterable[Case],
    prepare: Prepare,
    groups: dict[str, Callable[[Result], str]],
    args: argparse.Namespace,
) -> NoReturn:
    """Run all cases in parallel, print faults, progress and tables, and exit.

    The exit status is 1 if there is a fault. After Ctrl-C, the tables of the results so far are
    printed.

    Args:
        cases: cases to run.
        prepare: makes the mutation of a case.
        groups: heading of the first column of each table, and the row that a result belongs to.
        args: returned by `arguments`.
    """
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    all_cases = list(cases)
    results = _read(args.results, all_cases) if args.results and args.results.exists() else []
    done = {result.case.number for result in results}
    chosen = [case for case in all_cases if case.number not in done]
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(args.jobs, fork, _ignore_interrupts)
    status, printed = 0, time.monotonic()
    try:
        for new in pool.map(partial(run_case, prepare=prepare, keep=args.keep), chosen):
            results += new
            done.add(new[0].case.number)
            if args.results:
                _append(args.results, new)
            for fault in (result for result in new if result.outcome in FAULTS):
                print(_describe(fault), flush=True)
            if time.monotonic() - printed > PROGRESS_SECONDS:
                printed = time.monotonic()
                print(f"{len(done)} of {len(all_cases)} mutations are done", flush=True)
    except KeyboardInterrupt:
        print("Interrupted. Tables of the results so far:", flush=True)
        status = 130
    finally:
        pool.shutdown(cancel_futures=True)
    print(report(results, groups), flush=True)
    sys.exit(status or any(result.outcome in FAULTS for result in results))


def _ignore_interrupts() -> None:
    """Leave the reaction to Ctrl-C to the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _append(path: Path, results: Sequence[Result]) -> None:
    """Append the results of a case to a file, as one line of JSON."""
    lines = [(r.stage, r.outcome, round(r.seconds, 3), r.detail) for r in results]
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps([results[0].case.number, lines]) + "\n")


def _read(path: Path, cases: Sequence[Case]) -> list[Result]:
    """Read the results that `_append` wrote for the given cases."""
    by_number = {case.number: case for case in cases}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Result(by_number[number], *line)
        for number, lines in rows
        if number in by_number
        for line in lines
    ]


def _describe(fault: Result) -> str:
    last = "\n".join(fault.detail.splitlines()[-6:])
    case = fault.case
    return f"{case.number} {case.kind}, {case.seed.name}, {fault.stage}: {fault.outcome}\n{last}\n"
