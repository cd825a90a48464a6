"""The words of the seeds' ``train.py``, and what to type instead. Their configuration files are not read."""

from __future__ import annotations

from collections.abc import Sequence

from smolcluster.errors import ConfigError, Problem

FLAGS = ("--config", "--override")
NOW = {
    "batch_size": "train.batch_size",
    "epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "learning_rate": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "grad_clip_norm": "train.grad_clip_norm",
    "eval_steps": "train.eval_steps",
    "warmup_iters": "schedule.warmup_steps",
    "min_lr": "schedule.min_lr",
    "seq_length": "model.max_seq_len",
    "project_name": "tracking.project",
}
"""Last part of an old key -> the key of today, where it is another one (docs/from_the_seeds.md has them all)."""


def refuse(words: Sequence[str]) -> None:
    """ConfigError where ``words`` are of the old kind; it says what they are now, in one line."""
    if not any(word.partition("=")[0] in FLAGS for word in words):
        return
    plain = [word.removeprefix("--override=") for word in words]
    files = [word for word in plain if word.endswith((".yaml", ".yml"))]
    now = " ".join(today(word) for word in plain if "=" in word and not word.startswith("-"))
    rule = "is not needed: group=option and key=value are typed alone (docs/from_the_seeds.md has every old key)"
    if files:
        rule = "is not read: type what differs as group=option and key=value (docs/from_the_seeds.md has every old key)"
    key, value = ("--config", files[0].rpartition("=")[2]) if files else ("--override", "...")
    raise ConfigError([Problem(key=key, value=value, rule=rule, nearest=now or "model=gpt optim.lr=6e-4")])


def today(pair: str) -> str:
    """An old ``key=value`` with the key that it has now.

    >>> today("training.learning_rate=3e-4"), today("model.num_layers=4")
    ('optim.lr=3e-4', 'model.num_layers=4')
    """
    key, _, value = pair.partition("=")
    return f"{NOW.get(key.rpartition('.')[2], key)}={value}"
