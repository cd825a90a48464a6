"""Where a weight of our GPT stands in a checkpoint of transformers' ``GPT2LMHeadModel``, and the other way round.

GPT-2 keeps the matrices of its linear layers as ``[in, out]``, ours are ``[out, in]`` as torch has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TIED = "head.weight"
"""The same tensor as ``embedding.tokens.weight``; a checkpoint has it once."""
WORDS = {
    "embedding.tokens": "wte",
    "embedding.positions": "wpe",
    "head.norm": "ln_f",
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "feed_forward_norm": "ln_2",
    "feed_forward.inner": "mlp.c_fc",
    "feed_forward.output": "mlp.c_proj",
}
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def to_transformers(name: str) -> str:
    """The name there of a parameter of ours.

    >>> to_transformers("blocks.3.attention.qkv.weight")
    'transformer.h.3.attn.c_attn.weight'
    """
    layer, kind = name.rpartition(".")[::2]
    if layer.startswith("blocks."):
        _, number, inner = layer.split(".", 2)
        return f"transformer.h.{number}.{WORDS[inner]}.{kind}"
    return f"transformer.{WORDS[layer]}.{kind}"


def exported(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict as transformers names and lays it out; float32, contiguous, on the CPU."""
    found = {}
    for name, tensor in state.items():
        if name != TIED:
            there = to_transformers(name)
            found[there] = _turned(there, tensor.detach()).cpu().float().contiguous()
    return found


def imported(names: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state``, of transformers' model, as our model with the parameters ``names`` takes it."""
    found = {}
    for name in names:
        there = to_transformers("embedding.tokens.weight" if name == TIED else name)
        found[name] = _turned(there, state[there])
    return found


def _turned(there: str, tensor: Tensor) -> Tensor:
    return tensor.t() if there.endswith(TRANSPOSED) else tensor
