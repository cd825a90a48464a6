"""What a trained model becomes outside: a folder that transformers loads, or a program that torch loads."""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, cast

from smolcluster.data.dataset import Dataset
from smolcluster.model import gpt2_layout

if TYPE_CHECKING:
    from torch import Tensor, nn

    from smolcluster.model.nn.gpt import GPT

logger = logging.getLogger("smolcluster.model")
UNTRACEABLE = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError, ImportError)
"""What tracing makes of code that it does not understand."""
PROGRAM = "model.pt2"
WEIGHTS = "model.safetensors"


def as_gpt2(module: nn.Module, folder: Path, dataset: Dataset) -> None:
    """Write what ``transformers.AutoModelForCausalLM.from_pretrained(folder)`` loads, and the tokenizer's files."""
    model = cast("GPT", module)
    _save_weights(gpt2_layout.exported(model.state_dict()), folder)
    end = None if dataset.tokenizer is None else dataset.tokenizer.eos_id
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "bos_token_id": end,
        "eos_token_id": end,
        "tie_word_embeddings": True,
        "dtype": "float32",
        **model.dimensions,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if dataset.tokenizer is not None:
        dataset.tokenizer.save(folder)


def as_program(module: nn.Module, folder: Path, dataset: Dataset) -> None:
    """Write :data:`PROGRAM`, which ``torch.export.load`` runs with any batch size, and the weights beside it.

    A model that torch.export cannot trace leaves its weights alone, and a warning with the reason.
    """
    import torch

    model = copy.deepcopy(module).cpu().float().eval()
    example = torch.from_numpy(dataset.train.batch([0, 0]).inputs)
    batch = torch.export.Dim("batch", min=1)
    _save_weights(dict(model.state_dict()), folder)
    if dataset.tokenizer is not None:
        dataset.tokenizer.save(folder)
    with warnings.catch_warnings():
        # An LSTM keeps its parameters in a second list as well, which tracing fills anew and puts back.
        warnings.filterwarnings("ignore", message=r".*_flat_weights.* assigned during export")
        try:
            program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
        except UNTRACEABLE as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            logger.warning(
                "export/ has the weights, and no %s: torch.export cannot trace %s (%s)",
                PROGRAM, type(module).__name__, first,
            )  # fmt: skip
            return
    written = io.BytesIO()
    torch.export.save(program, written)
    (folder / PROGRAM).write_bytes(written.getbuffer())


def _save_weights(tensors: dict[str, Tensor], folder: Path) -> None:
    """Every tensor once: of names that share one, the first in alphabetical order.

    Written by Python, not by safetensors: its files nobody else may read, and its errors are not OSError.
    """
    from safetensors.torch import save

    by_place = {(tensors[name].data_ptr(), tensors[name].shape): name for name in sorted(tensors, reverse=True)}
    kept = {name: tensors[name].contiguous() for name in sorted(by_place.values())}
    (folder / WEIGHTS).write_bytes(save(kept, metadata={"format": "pt"}))
