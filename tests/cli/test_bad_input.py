"""Wrong input: one message with every problem, exit code 2, no traceback, nothing started."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import yaml

from smolcluster.cli.main import main
from smolcluster.spec.build import component_class, groups
from smolcluster.spec.compose import conf_dir, validate_jobs
from smolcluster.spec.run import Train
from smolcluster.spec.schema import Range, hints


def numeric(hint: Any) -> tuple[type, Range | None] | None:
    """(int or float, its range) of an annotation that holds a number."""
    limits: Range | None = None
    if get_origin(hint) is Annotated:
        hint, *extra = get_args(hint)
        limits = next((mark for mark in extra if isinstance(mark, Range)), None)
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        inner = [numeric(kind) for kind in kinds if get_origin(kind) is Annotated]
        if inner and inner[0]:
            return inner[0]
        hint = kinds[0]
    return (hint, limits) if hint in (int, float) else None


def outside(kind: type, limits: Range) -> str:
    """A value just outside of a range."""
    for bound, step in ((limits.ge, -1), (limits.gt, 0), (limits.le, 1), (limits.lt, 0)):
        if bound is not None:
            return str(int(bound + step)) if kind is int else repr(float(bound + step))
    raise AssertionError("a numeric key without bounds")


def numbers() -> Iterator[tuple[str, str, str]]:
    """(group choice, key, value out of range) for every numeric key of every yaml."""
    for field in dataclasses.fields(Train):
        found = numeric(hints(Train)[field.name])
        if found:
            assert found[1] is not None, field.name
            yield "", f"train.{field.name}", outside(found[0], found[1])
    yield "", "seed", "-1"
    for name, group in groups().items():
        for file in sorted((conf_dir() / group).glob("*.yaml")):
            config = yaml.safe_load(file.read_text())
            cls = component_class(group, config["_target_"])
            assert cls is not None, file
            for key in config:
                found = numeric(hints(cls)[key]) if key in hints(cls) else None
                if found:
                    assert found[1] is not None, f"{file}: {key} has no range"
                    yield f"{group}={file.stem}", f"{name}.{key}", outside(found[0], found[1])


@pytest.mark.parametrize(("choice", "key", "value"), list(numbers()))
def test_every_number_has_a_range(
    choice: str, key: str, value: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [f"{key}={value}", f"hydra.sweep.dir={tmp_path}/run", *([choice] if choice else [])]
    code = main(words)
    captured = capsys.readouterr()
    assert code == 2, captured
    assert f"{key}={value}: must be" in captured.err
    assert "Traceback" not in captured.err + captured.out
    assert not (tmp_path / "run").exists(), "nothing was started"


def message_of(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_all_problems_in_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    lines = message_of(capsys, "algo=synps", "optim.lr=-1", "model=gpt", "data=digits", "cluster.num_workerss=3")
    assert lines[0] == "smolcluster: 4 problems in the configuration"
    text = "\n".join(lines)
    assert "algo=synps: must be one of ddp, edp, single, syncps (conf/algo/); nearest valid: syncps" in text
    assert "optim.lr=-1: must be > 0 and <= 100; nearest valid: 0.001" in text
    assert "data=digits: gives features, but model=gpt takes tokens; nearest valid: data=pydocs" in text
    assert "nearest valid: cluster.num_workers" in text


def test_what_must_be_set_hides_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=custom", "data=wikitext2", "data.tokenizer=/nowhere", "algo=edp", "train.clip=none"]) == 2
    heading, *lines = capsys.readouterr().err.splitlines()
    assert heading == "smolcluster: 4 problems in the configuration"
    assert [line.split("=")[0].strip() for line in lines] == [
        "model.target", "train.clip", "model.max_seq_len", "data.tokenizer",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cluster=minis", "cluster.workers=[mini2,mini9]"], "cluster.workers.1=mini9: must be one of the nodes"),
        (["cluster=minis", "cluster.server=mini"], "cluster.server=mini: must be one of the nodes"),
        (
            ["cluster=minis", "cluster.nodes.mini2.host=10.10.0.1"],
            "cluster.port=65432: 10.10.0.1:65432 is taken by mini1; nearest valid: 0 (the system chooses)",
        ),
        (["cluster=wan"], "cluster=wan: is an example with documentation addresses: copy"),
        (["cluster.port=7000"], "127.0.0.1:7000 is taken by server"),
        (["model=gpt", "model.num_heads=3"], "model.num_heads=3"),
        (["data=text"], "data.path=???: must be set: it has no default"),
        (["model=gpt", "data=text", "data.path=/tmp"], "train.epochs=null: must be set: data=text has no number"),
        (["schedule.min_lr=0.5"], "schedule.min_lr=0.5: must be <= optim.lr=0.001"),
        (["optim=sgd", "optim.nesterov=true"], "optim.momentum=0.0: must be > 0 with optim.nesterov=true"),
        (["algo.quorum=3"], "algo.quorum=3: must be <= 2, the number of workers"),
        (["algo.timeout=700"], "algo.timeout=700.0: must be < algo.sync_max_wait_s=600"),
        (["algo.polyak_alpha=0"], "algo.polyak_alpha=0: must be > 0 and <= 1"),
        (["resume=/nowhere"], "resume=/nowhere: must be the directory of a run"),
        (["resume=README.md"], "resume=README.md: must be the directory of a run"),
        (["pipeline=evaluate"], "resume=null: must name the run"),
        (["epochs=3"], "nearest valid: data.epochs or train.epochs"),
        (["lr=3"], "nearest valid: optim.lr"),
        (["model=custom", "model.target=mine.MLP"], "importable on every node; nearest valid: mine:MLP"),
        (["model=custom", "model.target=mine/nets.py:MLP"], "importable on every node"),
        (["optim.lr=abc"], "optim.lr=abc: must be a number"),
        (["train.precision=8"], "train.precision=8: must be one of 32, bf16-mixed, 16-mixed, 64"),
        (["train"], "train=train: is not an override"),
        (["--config-dir", "/nowhere"], "--config-dir=/nowhere: must be a folder"),
        (["+fooo=1"], "fooo=1: unknown key (known: aggregator, algo, cluster, comms, data, logging, model, optim,"),
        (
            ["model=custom", "model.target=json:loads", "model.kwargs.x=1"],
            "model.kwargs.x=1: is not there yet: a new key is added with +; nearest valid: +model.kwargs.x=1",
        ),
        (
            ["cluster=minis", "cluster.nodes.mini2.workdir=/big", "cluster.nodes.mini2.disk=2"],
            "is not there yet: a new key is added with +; nearest valid: +cluster.nodes.mini2.workdir=/big",
        ),
        (
            ["model=gpt", "data=text", "train.epochs=1", "data.path=/no/where"],
            "data.path=/no/where: must be a file or a folder on this machine",
        ),
        (
            ["model=gpt", "data.tokenizer=/no/where"],
            "data.tokenizer=/no/where: must be a folder on this machine, a hub name, bytes or bpe:<n>; nearest valid:",
        ),
        (["data=mnist", "data.path=/no/where"], "data.path=/no/where: must be a folder on this machine; null: the hub"),
        (["model=gpt2", "model.path=~/no/where"], "model.path=~/no/where: must be a folder on this machine"),
        (
            ["data=custom", "data.target=no_where:f", "data.epochs=1"],
            "data.target=no_where:f: there is no module no_wh",
        ),
        (["model=custom", "model.target=no.where:f"], "model.target=no.where:f: there is no module no.where here"),
    ],
)
def test_messages(words: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = message_of(capsys, *words, f"hydra.sweep.dir={tmp_path}/run")
    assert expected in "\n".join(lines)


def test_everything_that_is_missing_here_in_one_message(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["model=gpt2", "model.path=/no/model", "data.path=/no/data", "data.tokenizer=./no/tokenizer"]
    lines = message_of(capsys, *words, f"hydra.sweep.dir={tmp_path}/run")
    assert lines[0] == "smolcluster: 3 problems in the configuration"
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_checkpoint_cannot_go_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "old" / ".hydra").mkdir(parents=True)
    (tmp_path / "old" / ".hydra" / "overrides.yaml").write_text("[]")
    lines = message_of(capsys, f"resume={tmp_path}/old", f"hydra.sweep.dir={tmp_path}/run")
    assert "must be the directory of a run that has saved a checkpoint" in lines[1]
    assert not (tmp_path / "run").exists()


def test_a_text_that_is_a_number_counts_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    """YAML 1.1 reads 6e-4 as a text, as in the seeds' own files."""
    assert validate_jobs(["optim.lr='6e-4'"], None)[0].optim.lr == 6e-4
    assert message_of(capsys, "optim.lr='6e-4'", "optim.eps='x'")[1:] == [
        "  optim.eps=x: must be a number, must be > 0 and <= 1; nearest valid: 1e-08"
    ]


def test_a_bad_job_of_a_sweep_stops_it_before_the_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = message_of(capsys, "optim.lr=1e-3,-1", "algo=syncps,sincps", f"hydra.sweep.dir={tmp_path}/run")
    assert lines[0] == "smolcluster: 2 problems in the configuration"
    assert not (tmp_path / "run").exists()


def test_from_the_shell(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "smolcluster", "algo=synps", "optim.lr=-1"], capture_output=True, text=True, check=False,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert "2 problems" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
