"""Three of the seeded kills of ``tests.integration.kills``, and what Ctrl-C and the controller's death do."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.integration.command import ENDLESS, PROMPT_S, Command, command, gone
from tests.integration.kills import WORDS, kill


@pytest.mark.parametrize(
    ("algo", "victim", "moment", "seed"),
    [("syncps", "worker1", "step", 11), ("syncps", "server", "checkpoint", 12), ("edp", "worker1", "evaluation", 13)],
)
def test_kill(tmp_path: Path, algo: str, victim: str, moment: str, seed: int) -> None:
    kill(algo, victim, moment, seed, tmp_path / "run")


def test_interrupt_leaves_a_usable_run(tmp_path: Path) -> None:
    with Command(tmp_path / "run", (*WORDS, *ENDLESS)) as run:
        run.wait_until(lambda: run.steps() > 30, "step 30")
        began = time.monotonic()
        os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does: to everybody in the foreground
        code = run.finish()
        ended = time.monotonic() - began
        pids = run.all_pids()
    assert code == 130
    assert ended < PROMPT_S
    gone(pids, 5)
    assert run.summary["status"] == "interrupted"
    assert (run.run / "loss.png").stat().st_size > 1000
    step = int((run.run / "checkpoints" / "latest").resolve().name.removeprefix("step-"))
    assert step == run.metrics[-1]["step"], "the last step is saved, not just the last due one"
    again = command(tmp_path / "again", f"resume={run.run}", f"train.max_steps={step + 10}")
    assert again.metrics[0]["step"] == step + 1
    assert run.lines[-1].endswith("run/0")


def test_killed_controller_leaves_no_process(tmp_path: Path) -> None:
    with Command(tmp_path / "run", (*WORDS, *ENDLESS)) as run:
        run.wait_until(lambda: run.steps() > 10, "step 10")
        pids = run.all_pids()
        run.process.kill()
        run.finish()
        gone(pids, 10)


@pytest.mark.parametrize(("victim", "code"), [("worker1", 0), ("server", 1)])
def test_a_node_that_hangs_is_named_and_ended(tmp_path: Path, victim: str, code: int) -> None:
    """SIGSTOP: the process is there, its connections are there, and it does nothing."""
    with Command(tmp_path / "run", WORDS) as run:
        run.wait_until(lambda: run.steps() > 20, "step 20")
        os.kill(run.pids()[victim], signal.SIGSTOP)
        began = time.monotonic()
        assert run.finish() == code
        assert time.monotonic() - began < 40
        pids = run.all_pids()
    gone(pids, 5)
    if code:
        assert "server: has reported nothing for" in run.stderr
    else:
        reasons = [event["reason"] for event in run.journal("killed")]
        assert any("worker1" in reason or "reported nothing" in reason for reason in reasons)
        assert run.summary["steps"] == 300
