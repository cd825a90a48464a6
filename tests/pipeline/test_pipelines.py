"""The pipelines as a person uses them: what they leave behind, and what they print last."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from smolcluster.tracking.rundir import RunReader
from tests.integration.command import command


def test_train_leaves_what_the_design_promises(tmp_path: Path) -> None:
    """The first command a newcomer types, with its defaults."""
    ran = command(tmp_path / "run")
    summary = ran.summary
    assert summary["status"] == "done"
    assert summary["final"]["accuracy"] >= 0.95
    assert ran.lines[-1].endswith("run/0"), "the last line is the directory"
    found = {str(path.relative_to(ran.run)) for path in ran.run.rglob("*") if path.is_file()}
    expected = {
        ".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml", "run_spec.json", "metrics.jsonl",
        "events.jsonl", "summary.json", "loss.png", "export/model.pt2", "export/model.safetensors",
    }  # fmt: skip
    assert expected <= found
    logs = {path.name for path in (ran.run / "logs").iterdir()}
    assert {name.split("-")[0] for name in logs} == {"server", "worker"}
    assert set(summary) >= {
        "status", "reason", "algo", "model", "data", "steps", "seconds", "samples_per_s", "tokens_per_s", "final",
        "best", "wire_bytes", "wait_share", "staleness", "nodes", "checkpoint", "digest",
    }  # fmt: skip
    spec = json.loads((ran.run / "run_spec.json").read_text())
    assert spec["nodes"]["worker1"]["torch"] == torch.__version__
    assert set(summary["wire_bytes"]) == {"sent", "received", "uncompressed"}
    assert not [path for path in ran.run.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    _evaluate(tmp_path, ran.run, summary)
    _exported(ran.run, summary)


def _evaluate(tmp_path: Path, run: Path, summary: dict) -> None:
    again = command(tmp_path / "evaluated", "pipeline=evaluate", f"resume={run}")
    assert again.summary["final"]["loss"] == pytest.approx(summary["final"]["loss"], abs=0)
    assert again.summary["digest"] == summary["digest"]


def _exported(run: Path, summary: dict) -> None:
    """A person without smolcluster loads the export and gets our accuracy."""
    from smolcluster.data.dataset import Context
    from smolcluster.data.digits import Digits

    program = torch.export.load(run / "export" / "model.pt2").module()
    data = Digits().load(Context(seq_length=None, seed=0, cache=run, say=lambda text: None))
    inputs, targets = data.validation.batch(range(len(data.validation)))
    right = (program(torch.from_numpy(inputs)).argmax(1) == torch.from_numpy(targets)).float().mean()
    assert float(right) == pytest.approx(summary["final"]["accuracy"], abs=1e-6)


def test_sweep_runs_all_and_compares(tmp_path: Path) -> None:
    words = ("algo=syncps,edp", "optim.lr=1e-3,3e-4", "train.epochs=1", "train.export=false")
    ran = command(tmp_path / "sweep", *words)
    assert (tmp_path / "sweep" / "sweep.png").stat().st_size > 5000
    assert ran.lines[-2] == "compared in sweep.md, sweep.csv, sweep.png"
    runs = sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert runs == ["0", "1", "2", "3"]
    table = "\n".join(ran.lines)
    for words_of_run in ("algo=syncps optim.lr=0.001", "algo=edp optim.lr=0.0003"):
        assert re.search(words_of_run.replace(" ", r".*"), table), table
    assert "run 1, 2 of 4: algo=syncps optim.lr=0.0003 " in table
    assert ran.lines[-1].endswith("sweep")
    assert [RunReader(tmp_path / "sweep" / n).summary()["algo"] for n in runs] == ["SyncPS", "SyncPS", "EDP", "EDP"]


def test_a_rerun_gives_the_same_weights(tmp_path: Path) -> None:
    first = command(tmp_path / "first", "train.max_steps=20", "train.export=false", "optim.lr=0.002")
    again = command(tmp_path / "again", f"rerun={first.run}")
    assert again.summary["rerun"] == {"of": str(first.run), "identical": True}
    assert any(re.match(r"rerun +bit for bit the weights of", line) for line in again.lines)


def test_bench_prints_one_table(tmp_path: Path) -> None:
    ran = command(
        tmp_path / "bench", "pipeline=bench", "pipeline.repeats=1", "pipeline.steps=5", "pipeline.warmup_steps=2",
        "pipeline.transfer_mb=1",
    )  # fmt: skip
    rows = json.loads((ran.run / "bench.json").read_text())
    assert [row["algo"] for row in rows] == ["single", "syncps", "edp", "ddp", *["Peers", "bare sockets"] * 2]
    keys = {"case", "algo", "comms", "compressor", "workers", "link", "step_time_s", "samples_per_s",
            "wire_bytes_per_step", "wait_share", "peak_rss_bytes", "ratio_to_ddp"}  # fmt: skip
    assert all(keys <= set(row) for row in rows[:4])
    syncps = rows[1]
    both_ways = 2 * 2 * 4 * 9610  # weights and gradients of two workers; counted in mid-stream, so not to the byte
    assert 0.7 * both_ways < syncps["wire_bytes_per_step"] < 1.2 * both_ways
    assert rows[3]["wire_bytes_per_step"] > 2 * 4 * 9610 / 2, "torch's all-reduce is seen at the interface"
    assert rows[3]["ratio_to_ddp"] == 1.0
    assert any("x ddp" in line for line in ran.lines)


def test_log_level_reaches_every_node(tmp_path: Path) -> None:
    ran = command(tmp_path / "run", "train.max_steps=3", "train.export=false", "logging.level=DEBUG")
    logs = RunReader(ran.run).logs()
    assert len(logs) >= 3
    for lines in logs.values():
        assert any(line["level"] == "DEBUG" for line in lines)
        assert {"ts", "level", "job", "component", "host", "rank", "run_id", "step", "message"} <= set(lines[0])
