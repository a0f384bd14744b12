"""Build, run and serve a model of the published size on this machine: `make bench-7b`.

Random weights of the published shapes are written, built and measured: whole frames (encode, temporal, depformer,
decode) in one process and through Triton, beside this machine's memory bandwidth and the bytes a frame must read.
Every step writes its results to the work folder. Checkpoint and repository are reused, and --only repeats single steps.
All steps need 25 GB of disk and about half an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from rich.progress import Progress

from gateway.triton_server.installation import huge_pages
from loadtest.bench.models.bytes_read import reads_of
from loadtest.bench.models.fewer_slots import with_slots
from loadtest.bench.models.process_memory import run_measured
from loadtest.bench.models.random_checkpoint import is_complete, write_random_checkpoint
from loadtest.bench.models.tables import markdown, show, tables
from loadtest.machine import machine
from loadtest.paths import ROOT
from model_repository.processors import processors
from model_repository.synthetic.tiny import TINY_CONFIG

MEMORY_SLOTS = 2
GROUPS = 3
"""Of frames of a case in one process."""
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Size:
    """What is measured of a model, by default."""

    name: str
    config: Mapping[str, Mapping[str, Any]]
    contexts: tuple[int, ...]
    served_contexts: tuple[int, ...]


SEVEN_B = Size("7b", {}, (100, 1500, 2999), (1500,))
TINY = Size("tiny", TINY_CONFIG, (20, 200, 511), (200,))


class Bench:
    """The steps, each of which writes WORK/STEP.json."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.size = TINY if options.tiny else SEVEN_B
        self.work: Path = options.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.models: Path = (options.models or self.work / "models").resolve()
        self.threads: int = options.threads or processors()
        self.contexts = options.contexts or list(self.size.contexts)
        self.served_contexts = options.served_contexts or list(self.size.served_contexts)
        self._options = options
        self._checkpoint: Path = (options.checkpoint or self.work / "checkpoint").resolve()

    @property
    def steps(self) -> Mapping[str, Callable[[], Any]]:
        return {
            "checkpoint": self._write,
            "build": self._build,
            "alone": self._alone,
            "served": self._served,
            "memory": self._memory,
            "operators": self._operators,
        }

    def run(self, step: str) -> None:
        """Run a step; existing checkpoints and repositories are reused."""
        print(f"{step} …", flush=True)
        found = self.steps[step]()
        if found is not None:
            (self.work / f"{step}.json").write_text(json.dumps(found, indent=1) + "\n")

    def stats(self) -> dict[str, Any]:
        """Results of all steps found in the work folder."""
        manifest = json.loads((self.models / "manifest.json").read_text())
        done = {step: self.work / f"{step}.json" for step in self.steps}
        return {
            "size": self.size.name,
            "variant": manifest["variant"],
            "kv": manifest.get("kv", "fp32"),
            "slots": manifest["slots"],
            "threads": self.threads,
            "contexts": self.contexts,
            "served_contexts": self.served_contexts,
            "machine": machine(),
            "reads": {stage: asdict(reads) for stage, reads in reads_of(self.models).items()},
            **{step: json.loads(file.read_text()) for step, file in done.items() if file.is_file()},
        }

    def _write(self) -> dict[str, Any] | None:
        if self._options.models or self._options.checkpoint or is_complete(self._checkpoint):
            return None
        began = time.perf_counter()
        with Progress() as bar:
            task = bar.add_task("writing random weights", total=1.0)
            write_random_checkpoint(
                self._checkpoint, self.size.config, progress=lambda done: bar.update(task, completed=done)
            )
        return {"seconds": round(time.perf_counter() - began, 1), "bytes": _bytes(self._checkpoint)}

    def _build(self) -> dict[str, Any] | None:
        options, manifest = self._options, self.models / "manifest.json"
        if options.models:
            return None
        build_options = {"variant": options.variant, "kv": options.kv, "slots": options.slots}
        if (
            manifest.is_file()
            and not options.rebuild
            and build_options.items() <= json.loads(manifest.read_text()).items()
        ):
            return None
        shutil.rmtree(self.models, ignore_errors=True)
        command = [sys.executable, "-m", "gateway.cli", "build", str(self._checkpoint), str(self.models)]
        for option, value in build_options.items():
            command += [f"--{option}", str(value)]
        with self._log("build") as log:
            took = run_measured(command, ROOT, log)
        seconds = round(took.seconds, 1)
        return {"seconds": seconds, "peak_bytes": took.peak_bytes, "bytes": _bytes(self.models), **build_options}

    def _alone(self) -> Any:
        rows = self._options.rows
        return self._worker(
            "graph_frames", self.models, "--rows", *rows, "--contexts", *self.contexts, *self._measured(GROUPS)
        )

    def _served(self) -> Any:
        rows, contexts = self._options.served_rows, self.served_contexts
        measured = self._measured(self._options.served_groups)
        return self._worker("triton_frames", self.models, "--rows", *rows, "--contexts", *contexts, *measured)

    def _memory(self) -> Any:
        """Memory of a server whose slots have full windows, without the prefix cache, whose bound is stated apart."""
        models = self.work / f"models-{MEMORY_SLOTS}-slots"
        with_slots(self.models, models, MEMORY_SLOTS)
        temporal = reads_of(self.models)["temporal"]
        few = ("--rows", MEMORY_SLOTS, "--contexts", temporal.window, "--groups", 1, "--frames", 1)
        found = self._worker("triton_frames", models, *few, PERSONAPLEX_PREFIX_COLUMNS="0")
        shutil.rmtree(models)
        return {**found, "remembered_at_most": temporal.window * temporal.column}

    def _operators(self) -> Any:
        return self._worker("operators", self.models, "--context", self.served_contexts[-1])

    def _measured(self, groups: int) -> tuple[str, ...]:
        return ("--groups", str(groups), "--frames", str(self._options.frames), "--threads", str(self.threads))

    def _worker(self, module: str, *arguments: object, **environment: str) -> Any:
        """Run a benchmark module as a process, which frees its memory at the end; return the JSON it prints."""
        command = [sys.executable, "-m", f"loadtest.bench.models.{module}", *map(str, arguments)]
        # The served models use huge pages; a measurement in one process uses them too.
        environment = {**os.environ, **huge_pages(os.environ), **environment}
        if self._options.threads:
            environment["PERSONAPLEX_INTRA_OP_THREADS"] = str(self.threads)
        with self._log(module) as log:
            answer = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, stderr=log)
        return json.loads(answer.stdout)

    @contextlib.contextmanager
    def _log(self, name: str) -> Iterator[IO[str]]:
        """Log a process to WORK/NAME.log; print the log if it fails."""
        file = self.work / f"{name}.log"
        try:
            with file.open("w") as log:
                yield log
        except subprocess.CalledProcessError as error:
            sys.exit(f"{file.read_text()}\n{name} failed with status {error.returncode}")


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/7b"), help="folder for everything (default build/7b)")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint to take instead of writing one")
    parser.add_argument("--models", type=Path, help="a built repository to take instead of building one")
    parser.add_argument("--tiny", action="store_true", help="a tiny model instead: tries the benchmark itself")
    parser.add_argument("--variant", default="int4")
    parser.add_argument("--kv", default="int8")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8], help="conversations, in one process")
    parser.add_argument("--contexts", type=int, nargs="+", help="columns before the frame (default 100 1500 2999)")
    parser.add_argument("--served-rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--served-contexts", type=int, nargs="+", help="made by prefill (default 1500)")
    parser.add_argument("--served-groups", type=int, default=12, help="of frames of each number of them (default 12)")
    parser.add_argument("--frames", type=int, default=5, help="measured between two looks at memory (default 5)")
    parser.add_argument("--threads", type=int, default=0, help="per model (default: what serving chooses)")
    parser.add_argument("--only", nargs="+", help="steps to do (default all)")
    parser.add_argument("--rebuild", action="store_true", help="build again even if there is a repository")
    parser.add_argument("--record", action="store_true", help=f"keep the results in {RESULTS.relative_to(ROOT)} too")
    options = parser.parse_args()
    bench = Bench(options)
    if unknown := set(options.only or ()) - set(bench.steps):
        parser.error(f"no step {', '.join(sorted(unknown))}; there are {', '.join(bench.steps)}")
    for step in options.only or bench.steps:
        bench.run(step)
    if not (bench.models / "manifest.json").is_file():
        return
    stats = bench.stats()
    made = tables(stats)
    show(made)
    for folder in (bench.work, *((RESULTS,) if options.record else ())):
        folder.mkdir(exist_ok=True)
        (folder / f"{bench.size.name}.json").write_text(json.dumps(stats, indent=1) + "\n")
        (folder / f"{bench.size.name}.md").write_text(markdown(made))


if __name__ == "__main__":
    main()
