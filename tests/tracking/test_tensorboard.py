import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from smolcluster.tracking import tensorboard
from smolcluster.tracking.tensorboard import TensorBoard
from smolcluster.tracking.tracker import RunInfo


def followed(run: RunInfo, events: list[dict[str, Any]], **options: Any) -> dict[str, list[Event]]:
    """Folder name -> the records in it."""
    tracker = TensorBoard(**options).tracker(run)
    assert list(tracker.start({})) == [f"TensorBoard: tensorboard --logdir {run.path / 'tensorboard'}"]
    for event in events:
        tracker.on_event(event)
    tracker.finish({})
    return {folder.name: list(_records(folder)) for folder in (run.path / "tensorboard").iterdir()}


def _records(folder: Path) -> Iterator[Event]:
    (file,) = folder.iterdir()
    for raw in RawEventFileLoader(str(file)).Load():
        yield Event.FromString(raw)


def values(records: list[Event], tag: str) -> list[tuple[int, float]]:
    return [(r.step, v.simple_value) for r in records for v in r.summary.value if v.tag == tag]


def test_tensorboard_reads_back_what_was_said(run: RunInfo, story: list[dict[str, Any]]) -> None:
    found = followed(run, story)
    assert list(found) == ["SyncPS-server-mini1_rank0_lr0.001_bs32"]
    records = found["SyncPS-server-mini1_rank0_lr0.001_bs32"]
    assert records[0].file_version == "brain.Event:2"
    assert values(records, "train/loss") == [(step, pytest.approx(2.0 / step)) for step in range(1, 11)]
    assert values(records, "validation/accuracy") == [(5, 0.3125), (10, 0.625)]
    assert values(records, "wire/sent_bytes")[-1] == (10, 10_000.0)
    assert [step for step, _ in values(records, "nodes/mini2/wait_share")] == [1, 6]
    assert records[1].wall_time == 1_000_001.0


def test_each_node_may_have_a_run_of_its_own(run: RunInfo, story: list[dict[str, Any]]) -> None:
    found = followed(run, story, per_node=True)
    assert sorted(found) == [
        "SyncPS-server-mini1_rank0_lr0.001_bs32",
        "SyncPS-worker-mini2_rank0_lr0.001_bs32",
        "SyncPS-worker-mini3_rank1_lr0.001_bs32",
    ]
    assert values(found["SyncPS-worker-mini3_rank1_lr0.001_bs32"], "nodes/mini3/samples_per_s")[0] == (1, 30.0)
    assert len(values(found["SyncPS-server-mini1_rank0_lr0.001_bs32"], "train/loss")) == 10


def test_what_is_written_can_be_seen_at_once(run: RunInfo, metrics: Any) -> None:
    tracker = TensorBoard().tracker(run)
    tracker.start({})
    tracker.on_event(metrics(1, 0.5))
    (folder,) = (run.path / "tensorboard").iterdir()
    assert values(list(_records(folder)), "train/loss") == [(1, 0.5)]
    tracker.finish({})


def test_numbers_that_do_not_fit_are_kept_as_infinite(run: RunInfo, metrics: Any) -> None:
    (records,) = followed(run, [metrics(1, 1e300, lr=float("nan"))]).values()
    assert values(records, "train/loss") == [(1, float("inf"))]
    assert values(records, "train/lr")[0][1] != values(records, "train/lr")[0][1]


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    (problem,) = TensorBoard().problems(cast(Any, None))
    expected = "tracking=tensorboard: needs a package: pip install tensorboard; nearest valid: files"
    assert str(problem) == expected


def test_with_the_package_there_is_no_problem() -> None:
    assert list(TensorBoard().problems(cast(Any, None))) == []


WRITES = """
import sys
from pathlib import Path
from smolcluster.tracking.tensorboard import TensorBoard
from smolcluster.tracking.tracker import NodeInfo, RunInfo
nodes = (NodeInfo(name="a", role="worker", rank=0, host="a"),)
run = RunInfo(path=Path(sys.argv[1]), run_id="r", project="p", algo="EDP", model="m", data="d", lr=1.0, batch_size=1,
              nodes=nodes)
tracker = TensorBoard().tracker(run)
tracker.start({})
tracker.on_event({"event": "metrics", "node": "a", "step": 1, "loss": 1.0, "t": 1.0})
print(sorted({"torch", "tensorflow"} & set(sys.modules)))
"""


def test_neither_torch_nor_tensorflow_is_loaded(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", WRITES, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


@pytest.mark.parametrize("name", ["files", "wandb", "tensorboard", "logs", "hub", "console"])
def test_components_are_light(name: str) -> None:
    importlib.import_module(f"smolcluster.tracking.{name}")
    heavy = "{'torch', 'wandb', 'tensorboard', 'matplotlib', 'rich', 'numpy', 'transformers', 'hydra'}"
    code = f"import sys, smolcluster.tracking.{name}; print({heavy} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"
