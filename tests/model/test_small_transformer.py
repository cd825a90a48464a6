from collections.abc import Callable
from pathlib import Path

import torch

from smolcluster.data.dataset import DataInfo, Dataset
from smolcluster.model.small_transformer import SmallTransformer

SMALL = SmallTransformer(model_dim=16, num_heads=2, ff_dim=32, max_seq_len=8)


def test_the_sizes(describe: Callable[..., DataInfo]) -> None:
    module = SmallTransformer().build(describe(512, 32))
    layer = 4 * 128 * 128 + 4 * 128 + 2 * 128 * 512 + 512 + 128 + 4 * 128
    assert sum(p.numel() for p in module.parameters()) == 512 * 128 + 32 * 128 + 2 * layer + 2 * 128 + 129 * 512
    assert module(torch.zeros(3, 32, dtype=torch.int64)).shape == (3, 32, 512)


def test_layers_start_from_different_weights(describe: Callable[..., DataInfo]) -> None:
    first, second = SMALL.build(describe(20, 8)).layers  # type: ignore[misc]
    assert not torch.equal(first.linear1.weight, second.linear1.weight)  # type: ignore[union-attr]


def test_a_position_sees_nothing_behind_it(describe: Callable[..., DataInfo]) -> None:
    torch.manual_seed(0)
    module = SMALL.build(describe(20, 8))
    ids = torch.randint(0, 20, (3, 8))
    other = ids.clone()
    other[:, 5] = (other[:, 5] + 1) % 20
    for training in (False, True):
        outs = []
        for one in (ids, other):
            torch.manual_seed(1)
            outs.append(module.train(training)(one))
        torch.testing.assert_close(outs[0][:, :5], outs[1][:, :5])
        assert not torch.allclose(outs[0][:, 5:], outs[1][:, 5:], atol=1e-4)


def test_with_and_without_gradients_are_one_function(describe: Callable[..., DataInfo]) -> None:
    """torch has a second implementation for inference."""
    module = SMALL.build(describe(20, 8)).eval()
    ids = torch.randint(0, 20, (3, 8))
    with torch.no_grad():
        fast = module(ids)
    torch.testing.assert_close(fast, module(ids), rtol=1e-5, atol=1e-5)


def test_export(tokens: Dataset, tmp_path: Path, check_program: Callable[..., None]) -> None:
    module = SMALL.build(tokens.info)
    SMALL.export(module, tmp_path, tokens)
    assert module.training
    check_program(module, tmp_path, tokens)


def test_heads_that_do_not_divide_the_width() -> None:
    (problem,) = SmallTransformer(model_dim=130).problems(None)  # type: ignore[arg-type]
    assert problem.key == "model.model_dim"
