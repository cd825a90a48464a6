"""W&B, offline and in a process of its own: it leaves threads and hooks behind that no other test should meet."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from smolcluster.tracking import wandb
from smolcluster.tracking.tracker import RunInfo, TrackerFailed
from smolcluster.tracking.wandb import Wandb, has_key, public, resolved_mode

KEY = "0123feedfacefeedfacefeedfacefeedfacebeef"
SECRET = "hunter2-secret"
BLOCK = 32768

FOLLOWS = """
import json, sys
from pathlib import Path
from smolcluster.tracking.tracker import NodeInfo, RunInfo
from smolcluster.tracking import wandb
told = json.load(sys.stdin)
wandb.START_S = told["start_s"]
nodes = tuple(NodeInfo(**node) for node in told["nodes"])
run = RunInfo(**{**told["run"], "path": Path(told["run"]["path"]), "nodes": nodes})
tracker = wandb.Wandb(**told["options"]).tracker(run)
print(*tracker.start({"optim": {"lr": 0.001}, "serve": {"api_key": told["secret"]}}), sep="\\n")
for event in told["events"]:
    tracker.on_event(event)
print(*tracker.finish({"status": "done", "best": {"loss": 0.25}}), sep="\\n")
"""


def followed(
    run: RunInfo, events: list[dict[str, Any]], environ: Mapping[str, str], *, start_s: float = 20.0, **options: Any
) -> list[str]:
    """What a process says that follows ``events`` with W&B."""
    described = {key: value for key, value in vars(run).items() if key != "nodes"} | {"path": str(run.path)}
    nodes = [vars(node) for node in run.nodes]
    told = {"run": described, "nodes": nodes, "events": events, "options": options, "start_s": start_s}
    told["secret"] = SECRET
    run.path.mkdir(parents=True)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", FOLLOWS],
        input=json.dumps(told),
        env=clean | {"HOME": str(run.path.parent / "home")} | environ,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stderr == ""
    return [line for line in ended.stdout.splitlines() if line]


def transactions(file: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file: LevelDB's log format after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(raw):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", raw[place : place + 7])
        parts += raw[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(parts)
            parts = b""


def logged(file: Path, name: str) -> list[Any]:
    rows = [record.history.item for record in transactions(file) if record.WhichOneof("record_type") == "history"]
    return [json.loads(item.value_json) for row in rows for item in row if name in (item.key, *item.nested_key)]


def described(file: Path) -> Any:
    return next(record.run for record in transactions(file) if record.WhichOneof("record_type") == "run")


def files(run: RunInfo) -> list[Path]:
    folders = [path for path in (run.path / "wandb").glob("*run-*") if not path.is_symlink()]
    return sorted(file for folder in folders for file in folder.glob("*.wandb"))


def test_one_run_for_the_job(run: RunInfo, story: list[dict[str, Any]], metrics: Any) -> None:
    norms = metrics(11, float("nan"), grad_norms={"fc1": 0.5}, staleness={"mean": 1.5, "max": 3})
    said = followed(run, [*story, norms], {"WANDB_API_KEY": KEY}, mode="offline", tags=["home"])
    assert said == ["W&B: offline", f"W&B: to send this run: wandb sync {run.path / 'wandb'}/offline-run-*"]
    (file,) = files(run)
    about = described(file)
    assert (about.project, about.run_group, about.job_type) == ("smolcluster", "20261121-0", "train")
    assert about.display_name == "SyncPS-server-mini1_rank0_lr0.001_bs32"
    assert list(about.tags) == ["home"]
    assert {item.key: json.loads(item.value_json) for item in about.config.update}["optim"] == {"lr": 0.001}
    assert logged(file, "train/loss")[:10] == pytest.approx([2.0 / step for step in range(1, 11)])
    assert logged(file, "validation/accuracy") == [0.3125, 0.625]
    assert logged(file, "gradients/fc1") == [0.5]
    assert logged(file, "staleness/max") == [3]
    assert logged(file, "wire/sent_bytes")[0] == 1000
    assert len(logged(file, "nodes/mini2/wait_share")) == 2


def test_a_run_per_node_and_the_key_nowhere(run: RunInfo, story: list[dict[str, Any]], tmp_path: Path) -> None:
    elsewhere = {"WANDB_DIR": str(tmp_path / "elsewhere"), "WANDB_MODE": "offline"}
    followed(run, story, {"WANDB_API_KEY": KEY, **elsewhere}, per_node=True, entity="team")
    found = {described(file).display_name: described(file) for file in files(run)}
    assert sorted(found) == [
        "SyncPS-server-mini1_rank0_lr0.001_bs32",
        "SyncPS-worker-mini2_rank0_lr0.001_bs32",
        "SyncPS-worker-mini3_rank1_lr0.001_bs32",
    ]
    assert {about.run_group for about in found.values()} == {"20261121-0"}
    assert found["SyncPS-worker-mini3_rank1_lr0.001_bs32"].job_type == "worker"
    written = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(written) > 3
    for path in written:
        content = path.read_bytes()
        assert KEY.encode() not in content, path
        assert SECRET.encode() not in content, path
    assert not (tmp_path / "elsewhere").exists()


def test_without_a_key_it_works_offline_and_says_so(run: RunInfo, metrics: Any) -> None:
    said = followed(run, [metrics(1, 0.5)], {})
    assert said[0] == "W&B: offline, for want of a key: run wandb login"
    assert [path.parent.name.startswith("offline-run-") for path in files(run)] == [True]


def test_a_server_that_does_not_answer_makes_it_offline(run: RunInfo, metrics: Any) -> None:
    nowhere = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    said = followed(run, [metrics(step, 0.5) for step in range(3)], nowhere, start_s=1.0, mode="online")
    assert said[0].startswith("W&B: offline, it could not be reached: ")
    assert said[1].endswith("/wandb/offline-run-*")
    (file,) = (run.path / "wandb").glob("offline-run-*/*.wandb")
    assert logged(file, "train/loss") == [0.5] * 3


def test_a_run_without_a_number_starts_nothing(run: RunInfo, say: Any) -> None:
    events = [
        say("mini1", "state", state="starting", detail=""),
        say("mini1", "journal", kind="joined", reason="ready"),
    ]
    assert followed(run, events, {}) == ["W&B: offline, for want of a key: run wandb login"]
    assert files(run) == []


def test_switched_off_it_starts_nothing(run: RunInfo, metrics: Any) -> None:
    said = followed(run, [metrics(1, 0.5)], {"WANDB_MODE": "disabled"})
    assert said == ["W&B: switched off by WANDB_MODE"]
    assert files(run) == []


def test_what_does_not_fit_is_counted_and_the_end_still_comes(
    run: RunInfo, metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb, "MAX_WAITING", 5)
    monkeypatch.setattr(wandb._Sender, "work", lambda self, events, config: None)
    tracker = Wandb(mode="offline").tracker(run)
    tracker.start({})
    for step in range(9):
        tracker.on_event(metrics(step, 1.0))
    assert "W&B: 5 measurements were left out, it did not keep up" in tracker.finish({})


def test_a_thread_that_fails_is_reported_without_the_key(
    run: RunInfo, metrics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, config: Any) -> None:
        raise OSError(f"disk full near {KEY}\nand more")

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb._Sender, "_open", broken)
    tracker = Wandb(mode="offline").tracker(run)
    tracker.start({})
    tracker.on_event(metrics(1, 1.0))
    with pytest.raises(TrackerFailed, match=r"^W&B: disk full near \*\*\*$"):
        tracker.finish({})
    with pytest.raises(TrackerFailed):
        tracker.on_event(metrics(1, 1.0))


def test_a_key_is_looked_for_where_wandb_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not has_key({})
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password abc\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert has_key({})
    assert not has_key({"WANDB_BASE_URL": "https://wandb.example.org"})
    assert not has_key({"NETRC": str(tmp_path / "none")})
    (tmp_path / ".netrc").write_text("machine")
    assert not has_key({})
    assert has_key({"WANDB_API_KEY": "x"})


@pytest.mark.parametrize(
    ("asked", "environ", "mode"),
    [
        ("auto", {"WANDB_API_KEY": "x"}, "online"),
        ("auto", {"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"NETRC": "/nowhere"}, "offline"),
        ("online", {"WANDB_MODE": "offline"}, "online"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_the_mode(asked: str, environ: dict[str, str], mode: str) -> None:
    assert resolved_mode(asked, environ) == mode


def test_online_without_a_key_is_a_problem_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (problem,) = Wandb(mode="online").problems(cast(Any, None))
    assert str(problem) == (
        "tracking.mode=online: needs a key: set WANDB_API_KEY, or run: wandb login; nearest valid: offline"
    )
    assert list(Wandb().problems(cast(Any, None))) == []
    monkeypatch.setattr(wandb, "find_spec", lambda name: None)
    (problem,) = Wandb().problems(cast(Any, None))
    assert problem.rule == "needs a package: pip install wandb"


def test_what_is_nobody_elses_business_is_not_sent() -> None:
    spec = {"cluster": {"nodes": [{"host": "mini1", "ssh": {"user": "me"}, "identity": "~/.ssh/id"}]}, "seed": 1}
    assert public(spec) == {"cluster": {"nodes": [{"host": "mini1"}]}, "seed": 1}
    secret = dict.fromkeys(["api_key", "key", "password", "auth_token", "token", "client_secret"], "x")
    assert public(secret) == {}
    assert public({"num_key_heads": 4, "tokens": 9}) == {"num_key_heads": 4, "tokens": 9}
