"""DistributedDataParallel with nothing of ours around it but the model: what ``algo=ddp`` is held against.

    torchrun --nproc-per-node 2 tests/bench/bare_ddp.py --steps 12 --warmup-steps 3

Batch, sizes, optimizer and clipping are those of ``model=gpt``: 256 wide, 6 layers, 4 heads, 1024 feed-forward,
dropout 0.1, 512 tokens, sequences of 128, 32 of them per rank, AdamW, gradients clipped to norm 1. The tokens are
random: that does not change what a step costs. ``--model transformers`` takes GPT2LMHeadModel of the same sizes
instead of our GPT. Rank 0 prints the median step time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

VOCABULARY, LENGTH, WIDTH, LAYERS, HEADS, FEED_FORWARD, DROPOUT = 512, 128, 256, 6, 4, 1024, 0.1


def ours() -> nn.Module:
    from smolcluster.model.nn.gpt import GPT

    return GPT(
        vocab_size=VOCABULARY, num_positions=LENGTH, model_dim=WIDTH, num_layers=LAYERS, num_heads=HEADS,
        ff_dim=FEED_FORWARD, dropout=DROPOUT,
    )  # fmt: skip


class Transformers(nn.Module):
    """GPT2LMHeadModel of the same sizes; ids ``[batch, length]`` to logits ``[batch, length, vocabulary]``."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = {"n_positions": LENGTH, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": FEED_FORWARD}
        drops = {"embd_pdrop": DROPOUT, "attn_pdrop": DROPOUT, "resid_pdrop": DROPOUT}
        self.model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, use_cache=False, **sizes, **drops))

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=ids).logits
        return logits


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--steps", type=int, default=12)
    options.add_argument("--warmup-steps", type=int, default=3)
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--model", choices=("ours", "transformers"), default="ours")
    asked = options.parse_args()

    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    model = DistributedDataParallel(ours() if asked.model == "ours" else Transformers())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    times = []
    for _ in range(asked.warmup_steps + asked.steps):
        began = time.perf_counter()
        tokens = torch.randint(VOCABULARY, (asked.batch_size, LENGTH + 1))
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
    if dist.get_rank() == 0:
        median = statistics.median(times[asked.warmup_steps :])
        sys.stdout.write(json.dumps({"step_time_s": median, "threads": torch.get_num_threads()}) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
