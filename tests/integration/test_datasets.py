"""Every data set trains from a local copy in the hub's layout, made here, and from real files where there are any."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.in_memory import run
from tests.real_data import REAL, with_real

pytestmark = [pytest.mark.usefixtures("torch_settings", "no_thread_left")]
SMALL_GPT = ("model=gpt", "model.model_dim=32", "model.num_layers=1", "model.num_heads=2", "model.ff_dim=64",
             "model.max_seq_len=16", "data.tokenizer=bytes", "train.batch_size=4")  # fmt: skip


def png(value: int) -> dict[str, bytes | None]:
    file = io.BytesIO()
    Image.fromarray(np.full((28, 28), value, dtype=np.uint8)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def mnist(folder: Path) -> None:
    for split, count in (("train", 64), ("test", 16)):
        labels = [i % 10 for i in range(count)]
        table = pa.table({"image": [png(25 * label) for label in labels], "label": labels})
        pq.write_table(table, folder / f"{split}.parquet")


def wikitext2(folder: Path) -> None:
    lines = [" = Title = \n", "", "Some words about a thing, and some more of them.\n"] * 20
    for split in ("train", "validation"):
        pq.write_table(pa.table({"text": lines}), folder / f"{split}.parquet")


def snli(folder: Path) -> None:
    table = {"premise": ["A man sleeps."] * 30, "hypothesis": ["He is awake."] * 30, "label": [0, 1, 2, -1, 0] * 6}
    for split in ("train", "validation"):
        pq.write_table(pa.table(table), folder / f"{split}.parquet")


def text(folder: Path) -> None:
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"This is text {name}. " * 50)


CASES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "mnist": (mnist, ()),
    "wikitext2": (wikitext2, SMALL_GPT),
    "snli": (snli, SMALL_GPT),
    "text": (text, SMALL_GPT),
}


@pytest.mark.parametrize("data", CASES)
def test_trains_from_a_local_copy(tmp_path: Path, data: str) -> None:
    make, words = CASES[data]
    make(tmp_path)
    ran = run(tmp_path / "run", f"data={data}", f"data.path={tmp_path}", *words, "train.max_steps=6", "train.epochs=99")
    assert ran.code == 0
    assert ran.of("metrics")[-1]["step"] == 6
    assert ran.of("evaluation")[-1]["loss"] < 10


def make_blobs(count: int = 40) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A data set of a user's own: two blobs."""
    generator = np.random.default_rng(0)
    targets = np.arange(count) % 2
    inputs = generator.normal(size=(count, 3)).astype(np.float32) + 4 * targets[:, None]
    return (inputs[8:], targets[8:]), (inputs[:8], targets[:8])


def test_trains_on_a_data_set_of_ones_own(tmp_path: Path) -> None:
    ran = run(
        tmp_path, "data=custom", f"data.target={__name__}:make_blobs", "+data.kwargs.count=64", "train.epochs=30",
        "schedule.warmup_steps=5", "optim.lr=0.02",
    )  # fmt: skip
    assert ran.code == 0
    assert ran.of("evaluation")[-1]["accuracy"] == 1.0


def make_texts() -> tuple[list[str], list[str]]:
    return ["the cat sat on the mat, the dog lay by the door. " * 20] * 4, ["the dog sat on the mat. " * 10]


def make_token_ids() -> tuple[list[list[int]], list[list[int]]]:
    return [[number % 7 for number in range(400)]] * 4, [[number % 7 for number in range(90)]]


@pytest.mark.parametrize("algo", ["syncps", "edp"])
@pytest.mark.parametrize("what", ["make_texts", "make_token_ids"])
def test_trains_on_texts_and_token_ids_of_ones_own(tmp_path: Path, what: str, algo: str) -> None:
    ran = run(
        tmp_path, f"algo={algo}", "model=tiny_lstm", "data=custom", f"data.target={__name__}:{what}",
        "data.tokenizer=bytes", "model.max_seq_len=16", "train.batch_size=4", "train.max_steps=8", "train.epochs=9",
    )  # fmt: skip
    assert ran.code == 0
    metrics = ran.of("metrics")
    assert metrics[-1]["step"] == 8
    assert metrics[-1]["tokens_per_s"] == pytest.approx(16 * metrics[-1]["samples_per_s"])
    assert not ran.journal("refused") + ran.journal("rejected")


@with_real("mnist", "wikitext2")
@pytest.mark.parametrize("data", ["mnist", "wikitext2"])
def test_trains_from_real_files(tmp_path: Path, data: str) -> None:
    words = (*(SMALL_GPT if data == "wikitext2" else ()), "optim.lr=0.003", "schedule.warmup_steps=5")
    ran = run(
        tmp_path, f"data={data}", f"data.path={REAL / data}", *words, "train.max_steps=60", "train.eval_samples=500"
    )
    assert ran.code == 0
    first, last = ran.of("metrics")[0]["loss"], ran.of("metrics")[-1]["loss"]
    assert last < 0.8 * first
    if data == "mnist":
        assert ran.of("evaluation")[-1]["accuracy"] > 0.8
