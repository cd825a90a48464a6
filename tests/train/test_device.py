"""What a node does not import: it would take as long as torch itself, on every machine."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import torch
from smolcluster.train.device import OptimizedModule, fabric_for, without_compiler
fabric = fabric_for("cpu", "32")
module = fabric.setup(torch.nn.Linear(2, 2))
fabric.backward(module(torch.ones(1, 2)).sum())
assert "torch._dynamo" not in sys.modules
compiled = torch.compile(torch.nn.Linear(2, 2))
assert "torch._dynamo" in sys.modules, "whoever wants it can have it"
assert type(compiled) is torch._dynamo.OptimizedModule
with without_compiler():
    assert torch._dynamo.OptimizedModule is not OptimizedModule, "what is there stays"
assert fabric.setup(compiled)(torch.ones(1, 2)).shape == (1, 2)
"""


def test_a_node_does_without_torchs_compiler_until_somebody_wants_it() -> None:
    subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], check=True, timeout=120)
