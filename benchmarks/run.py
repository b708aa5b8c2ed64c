"""Running of tasks: round by round, for all readers in turn, each in a separate process."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.results import Results
from benchmarks.tasks import Draw, Fresh, Warm

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.slides import Slide

__all__ = ["run"]

ROOT = Path(__file__).parent.parent
LONGEST = 120
"""Upper bound in seconds on the time of a fresh process."""
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
"""Environment of fresh processes: modules are compiled beforehand, as after installation."""


class Child:
    """A process with an open slide that executes commands."""

    def __init__(self, reader: str, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", reader, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )
        self.failed = ""
        self.starting = ["load_more", "open"]  # of all children at once
        for operation in self.starting:
            self.tell(operation, {})

    def tell(self, operation: str, arguments: dict[str, Any], **more: Any) -> None:
        """Send a command to the child, whose answer is to be heard."""
        assert self.process.stdin is not None
        command = {"operation": operation, "arguments": arguments, **more}
        print(json.dumps(command), file=self.process.stdin, flush=True)

    def _next(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def hear(self) -> dict[str, Any]:
        """Return the answer to the command that was sent."""
        try:
            while self.starting:
                self.starting.pop()
                self.failed = self.failed or self._next().get("error", "")
            found = self._next()
        except (OSError, ValueError):
            self.failed = f"its process ended ({self.process.wait()})"
        return {"error": self.failed} if self.failed else found

    def ask(self, operation: str, arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Send a command to the child, and return its answer."""
        try:
            self.tell(operation, arguments, **more)
        except OSError:
            self.failed = f"its process ended ({self.process.wait()})"
            return {"error": self.failed}
        return self.hear()

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def run(
    tasks: Sequence[Warm | Fresh], slides: dict[str, Slide], folder: Path, rounds: int
) -> Results:
    """Measure tasks on slides, which are written into a folder if they don't exist."""
    results = Results()
    for name in dict.fromkeys(task.slide for task in tasks):
        say(f"{name}: write")
        slide = slides[name]
        path = slide.write(folder)
        warm = [task for task in tasks if task.slide == name and isinstance(task, Warm)]
        fresh = [task for task in tasks if task.slide == name and isinstance(task, Fresh)]
        draw = Draw(np.random.default_rng(), slide.edge, slide.tile)
        with slide.served(path) as reason:
            if reason:
                for task in warm:
                    for reader in task.readers:
                        results.add(task.key, reader, {"error": reason})
                continue
            if warm:
                run_warm(results, warm, path, draw, rounds)
            for task in fresh:
                run_fresh(results, task, path, draw, rounds)
    return results


def run_warm(results: Results, tasks: list[Warm], path: Path, draw: Draw, rounds: int) -> None:
    """Measure operations in warm processes."""
    names = dict.fromkeys(reader for task in tasks for reader in task.readers)
    children = {name: Child(name, path) for name in names}
    try:
        compare(results, tasks[0].slide, children, draw)
        for task in tasks:
            arguments = task.arguments(draw)
            for reader in task.readers:
                for step, given in task.prepare:
                    found = children[reader].ask(step, given)
                    if "error" in found:
                        results.add(task.key, reader, found)
                if not task.slow and (task.key, reader) not in results.reasons:
                    found = children[reader].ask(task.operation, arguments)
                    if "error" in found:
                        results.add(task.key, reader, found)
        for turn in range(rounds):
            for task in tasks:
                if task.slow and turn >= (rounds + 1) // 2:
                    continue
                say(f"{task.key}: round {turn + 1}")
                arguments = task.arguments(draw)
                for reader in in_turn(task.readers, turn):
                    if (task.key, reader) in results.reasons:
                        continue
                    found = children[reader].ask(task.operation, arguments, forget=task.forget)
                    results.add(task.key, reader, found, task.unit(arguments))
    finally:
        for child in children.values():
            child.close()


def run_fresh(results: Results, task: Fresh, path: Path, draw: Draw, rounds: int) -> None:
    """Measure operations in processes that are started for them."""
    # the first one isn't counted: it compiles what is imported. A single round measures nothing
    is_warmed = not task.slow and rounds > 1
    turns = range(-1, rounds) if is_warmed else range((rounds + 1) // 2)
    for turn in turns:
        say(f"{task.key}: round {turn + 1}")
        steps = [(operation, arguments(draw)) for _, operation, arguments in task.steps]
        for reader in in_turn(task.readers, turn):
            command = [sys.executable, "-m", "benchmarks.worker", reader, str(path)]
            start = time.perf_counter()
            try:
                done = subprocess.run(
                    [*command, json.dumps(steps)],
                    capture_output=True,
                    text=True,
                    cwd=ROOT,
                    env=ENVIRONMENT,
                    timeout=LONGEST,
                    check=True,
                )
                answers = json.loads(done.stdout)
            except subprocess.TimeoutExpired:
                answers = [{"error": f"not done after {LONGEST} s"}] * len(steps)
            except subprocess.CalledProcessError as error:
                answers = [{"error": f"its process ended ({error.returncode})"}] * len(steps)
            elapsed = (time.perf_counter() - start) * 1000
            if turn < 0:
                continue
            for (name, *_), found in zip(task.steps, answers, strict=True):
                if name:
                    results.add(f"{task.slide}: {name}", reader, found)
            if task.whole:
                failed = [found for found in answers if "error" in found]
                found = (
                    failed[0]
                    if failed
                    else {
                        "ms": elapsed,
                        "cpu_ms": sum(found["cpu_ms"] for found in answers),
                        "MiB": max(found["MiB"] for found in answers),
                        "read_MB": sum(found["read_MB"] for found in answers),
                        "more_MiB": float("nan"),
                    }
                )
                results.add(task.key, reader, found)


def compare(results: Results, slide: str, children: dict[str, Child], draw: Draw) -> None:
    """Compare what readers return with the pixels of the bare decoder."""
    if "decoder" not in children:
        return
    for position in draw.regions(2, 300)["at"]:
        arguments = {"row": position[0], "column": position[1], "size": 300}
        wanted = _pixels(children["decoder"].ask("pixels", arguments))
        for reader, child in children.items():
            found = _pixels(child.ask("pixels", arguments))
            if found is None or wanted is None or "no decoder" in reader:
                continue
            if found.shape != wanted.shape:
                told = f"shape {found.shape}, not {wanted.shape}"
            else:
                worst = int(np.abs(found.astype(int) - wanted).max())
                told = f"by up to {worst}" if worst else ""
            if told:
                results.differences[slide, reader] = told


def _pixels(answer: dict[str, Any]) -> np.ndarray | None:
    if "error" in answer:
        return None
    flat = np.frombuffer(base64.b64decode(answer["pixels"]), answer["dtype"])
    pixels = flat.reshape(answer["shape"])
    return pixels.reshape(*pixels.shape[:2], -1)


def in_turn(readers: Sequence[str], turn: int) -> Iterator[str]:
    """Yield readers in an order that changes each round, forwards and backwards."""
    at = turn // 2 % len(readers)
    turned = [*readers[at:], *readers[:at]]
    return iter(turned if turn % 2 == 0 else turned[::-1])


def say(text: str) -> None:
    """Print the progress."""
    if sys.stderr.isatty():
        print(f"\r{text[:78]:<78}\r", end="", file=sys.stderr, flush=True)
