from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from smolcluster.tracking.tracker import NodeInfo, RunInfo, run_name


class EDP:
    pass


@dataclass
class Spec:
    """What of a run spec is looked at."""

    project: str | None = None
    seq_length: int | None = None
    batch_size: int = 32
    algo: Any = field(default_factory=EDP)
    optim: Any = field(default_factory=lambda: SimpleNamespace(lr=6e-4))
    model: Any = None
    data: Any = None
    choices: dict[str, str] = field(default_factory=lambda: {"model": "gpt", "data": "wikitext2"})

    @property
    def tracking(self) -> Any:
        return SimpleNamespace(project=self.project)


def info(spec: Spec) -> RunInfo:
    nodes = [NodeInfo(name="macbook", role="worker", rank=1, host="macbook")]
    return RunInfo.of(cast(Any, spec), path=Path("outputs/0"), run_id="r", nodes=nodes)


def test_the_project_follows_the_data_of_a_language_model() -> None:
    assert info(Spec()).project == "smolcluster"
    assert info(Spec(seq_length=128)).project == "smolcluster-gpt-wikitext2"
    assert info(Spec(seq_length=128, project="mine")).project == "mine"


def test_a_run_is_called_by_algorithm_role_host_rank_rate_and_batch() -> None:
    run = info(Spec(optim=SimpleNamespace(lr=0.001)))
    assert run_name(run, run.nodes[0]) == "EDP-worker-macbook_rank1_lr0.001_bs32"
    assert run_name(info(Spec()), run.nodes[0]).endswith("_lr0.0006_bs32")


def test_a_node_is_found_by_its_name() -> None:
    run = info(Spec())
    assert run.node("macbook") is run.nodes[0]
    assert run.node("pi5") is None
