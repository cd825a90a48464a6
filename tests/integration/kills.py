"""kill -9 at a random moment of a run, and what must be true afterwards. ``python -m tests.integration.kills`` does 20
seeded moments per role and prints the table; the suite does three of them."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.integration.command import Command, command, gone

STEPS = 300
WORDS = (
    f"train.max_steps={STEPS}", "train.epochs=1000", "train.eval_steps=15", "train.checkpoint_steps=10",
    "train.export=false", "comms.chaos_delay_s=0.004", "train.keep_checkpoints=2",
)  # fmt: skip
MOMENTS = ("join", "checkpoint", "evaluation", "step")


@dataclass(frozen=True)
class Killed:
    """One row of the table."""

    algo: str
    victim: str
    moment: str
    seed: int
    state: str
    noticed_s: float | None
    pause_s: float | None
    ended_s: float
    outcome: str


def kill(algo: str, victim: str, moment: str, seed: int, folder: Path) -> Killed:
    """Run, kill ``victim`` near ``moment``, and check all that must hold then. AssertionError where it does not."""
    chance = random.Random(f"{algo} {victim} {moment} {seed}")
    with Command(folder, (*WORDS, f"algo={algo}", f"seed={seed}")) as run:
        _wait_for(run, victim, moment, chance)
        time.sleep(chance.uniform(0, 0.6 if moment == "join" else 0.05))  # the random moment itself
        target = run.pids()[victim]
        state = (run.states(victim) or ["starting"])[-1]
        os.kill(target, signal.SIGKILL)
        began, at = time.monotonic(), time.time()
        noticed = None
        if run.process.poll() is None:
            run.wait_until(lambda: "lost" in run.states(victim) or run.process.poll() is not None, "being noticed")
            noticed = time.monotonic() - began
        code = run.finish()
        ended = time.monotonic() - began
        pids = run.all_pids()
    gone(pids, 10)
    check = _check_server if victim == "server" else _check_worker
    outcome = check(run, code, ended, noticed, folder)
    return Killed(algo, victim, moment, seed, state, noticed, longest_pause(run, at), ended, outcome)


def longest_pause(run: Command, since: float) -> float | None:
    """Seconds between two optimizer steps, at most, in a run that went on after the kill; None where it did not."""
    times = [line["t"] for line in run.metrics] if run.steps() else []
    after = [late - max(early, since) for early, late in itertools.pairwise(times) if late > since]
    return max(after, default=None)


def _wait_for(run: Command, victim: str, moment: str, chance: random.Random) -> None:
    """Until shortly before the moment: the victim has been started, or some random step, saving or evaluation."""
    step = chance.randint(1, STEPS // 2)
    run.wait_until(lambda: victim in run.pids(), f"{victim} being started")
    if moment == "join":
        return
    run.wait_until(lambda: run.steps() >= step, f"step {step}")
    state = {"checkpoint": "saving", "evaluation": "evaluating"}.get(moment)
    if state is not None:
        before = run.states("server").count(state)
        run.wait_until(lambda: run.states("server").count(state) > before, state)


def _check_worker(run: Command, code: int, ended: float, noticed: float | None, folder: Path) -> str:
    assert code == 0, "\n".join(run.lines) + run.stderr
    assert noticed is not None
    assert noticed < 5, f"noticed after {noticed:.1f} s"
    assert run.summary["steps"] == STEPS
    if run.summary["algo"] == "SyncPS":
        counts = run.samples()
        assert set(counts.values()) == {1}, "each sample of an epoch exactly once"
        sizes = {sum(stop - start for _, start, stop in line["spans"]) for line in run.metrics}
        assert sizes <= {64, 1438 % 64}, "every step is made of the whole global batch"
    back = len(run.journal("started")) > 3
    return "went on" + (", came back" if back else "")


def _check_server(run: Command, code: int, ended: float, noticed: float | None, folder: Path) -> str:
    assert code == 1, "\n".join(run.lines) + run.stderr
    assert ended < 10, f"ended after {ended:.1f} s"
    assert re.search(r"server.*killed by signal 9", run.stderr), run.stderr
    latest = run.run / "checkpoints" / "latest"
    if not latest.exists():
        return "ended; no checkpoint yet"
    step = int(latest.resolve().name.removeprefix("step-"))
    again = command(folder / "again", f"resume={run.run}", f"train.max_steps={step + 20}")
    assert again.summary["steps"] == step + 20
    return f"ended; resumed from step {step}"


def main() -> None:
    """20 moments per role and algorithm, as a Markdown table."""
    per_role = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    write = sys.stdout.write
    columns = (
        "algorithm",
        "killed",
        "moment",
        "seed",
        "its state",
        "noticed after",
        "longest pause",
        "run ended after",
    )
    write(f"| {' | '.join(columns)} | outcome |\n{'|---' * 9}|\n")
    for algo in ("syncps", "edp"):
        for victim in ("worker1", "server"):
            for seed in range(per_role):
                moment = MOMENTS[seed % len(MOMENTS)]
                with tempfile.TemporaryDirectory() as folder:
                    row = kill(algo, victim, moment, seed, Path(folder) / "run")
                noticed, pause = ("-" if s is None else f"{s:.2f} s" for s in (row.noticed_s, row.pause_s))
                what = f"| {algo} | {victim} | {moment} | {seed} | {row.state} | {noticed} | {pause} |"
                write(f"{what} {row.ended_s:.1f} s | {row.outcome} |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
