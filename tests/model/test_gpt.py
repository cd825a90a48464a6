import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from smolcluster.data.dataset import DataInfo, Dataset
from smolcluster.model import gpt2_layout
from smolcluster.model.gpt import GPT
from smolcluster.model.nn import gpt as modules

SMALL = GPT(model_dim=16, num_layers=2, num_heads=4, ff_dim=32, max_seq_len=8)


def built(model: GPT, info: DataInfo, seed: int = 0) -> modules.GPT:
    torch.manual_seed(seed)
    module = model.build(info)
    assert isinstance(module, modules.GPT)
    return module


@pytest.mark.parametrize(("vocab_size", "num_parameters"), [(50_257, 17_637_632), (512, 4_902_912)])
def test_the_seeds_model(vocab_size: int, num_parameters: int, describe: Callable[..., DataInfo]) -> None:
    with torch.device("meta"):
        module = GPT().build(describe(vocab_size, 128))
    assert sum(p.numel() for p in module.parameters()) == num_parameters


def test_the_matrix_of_embedding_and_head_is_one(describe: Callable[..., DataInfo]) -> None:
    module = built(SMALL, describe(20, 8))
    assert module.head.weight is module.embedding.tokens.weight
    names = [name for name, _ in module.named_parameters()]
    assert "embedding.tokens.weight" in names
    assert "head.weight" not in names


def test_the_initialisation_is_gpt2s(describe: Callable[..., DataInfo]) -> None:
    module = built(GPT(model_dim=128, num_layers=8, ff_dim=512), describe(512, 128))
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif "norm" in name:
            assert (parameter == 1).all()
        else:
            std = 0.02 / math.sqrt(16) if "output" in name else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.03)
            assert abs(parameter.mean().item()) < 0.1 * std


def test_a_position_sees_nothing_behind_it(describe: Callable[..., DataInfo]) -> None:
    module = built(SMALL, describe(20, 8)).eval()
    ids = torch.randint(0, 20, (3, 8))
    other = ids.clone()
    other[:, 5] = (other[:, 5] + 1) % 20
    one, two = module(ids), module(other)
    assert torch.equal(one[:, :5], two[:, :5])
    assert not torch.allclose(one[:, 5:], two[:, 5:])


def test_the_bias_that_softmax_cancels_is_not_trained_on_rounding(describe: Callable[..., DataInfo]) -> None:
    module = built(SMALL, describe(20, 8))
    module(torch.randint(0, 20, (3, 8))).pow(2).sum().backward()
    for block in module.blocks:
        assert isinstance(block, nn.Module)
        gradient = block.get_parameter("attention.qkv.bias").grad
        assert gradient is not None
        query, key, value = gradient.chunk(3)
        assert not key.any()
        assert query.any()
        assert value.any()


def test_the_parts_are_the_whole(describe: Callable[..., DataInfo]) -> None:
    module = built(SMALL, describe(20, 8)).eval()
    ids = torch.randint(0, 20, (3, 6))
    x = module.embedding(ids)
    for block in module.blocks:
        x = block(x)
    assert torch.equal(module.head(x), module(ids))


def same_as_transformers(module: modules.GPT, theirs: nn.Module, ids: torch.Tensor) -> None:
    """Equal logits, loss gradients included."""
    ours_out, theirs_out = module(ids), theirs(ids).logits
    assert (ours_out - theirs_out).abs().max() <= 1e-5
    for out in (ours_out, theirs_out):
        nn.functional.cross_entropy(out.flatten(0, 1), ids.flatten()).backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert len(gradients) == len(expected)
    for name, gradient in gpt2_layout.exported(gradients).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6)


def test_export_is_what_transformers_loads(tokens: Dataset, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    module = built(SMALL, tokens.info)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path / "out"
    folder.mkdir()
    SMALL.export(module, folder, tokens)
    files = sorted(file.name for file in folder.iterdir())
    assert files == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    same_as_transformers(module.eval(), theirs, torch.from_numpy(tokens.train.batch(range(4)).inputs))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("the mat")["input_ids"]) == "the mat"
    assert theirs.config.eos_token_id == tokenizer.eos_token_id == 0


def test_dropout_is_where_gpt2_has_it(tokens: Dataset, tmp_path: Path) -> None:
    """With one seed, training gives transformers' numbers: the same masks, drawn at the same places."""
    from transformers import AutoModelForCausalLM

    module = built(replace(SMALL, dropout=0.3), tokens.info)
    SMALL.export(module, tmp_path, tokens)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa").train()
    ids = torch.from_numpy(tokens.train.batch(range(4)).inputs)
    outs = []
    for one in (module.train(), theirs):
        torch.manual_seed(3)
        out = one(ids)
        outs.append(out if one is module else out.logits)
    assert (outs[0] - outs[1]).abs().max() <= 1e-5
    assert not torch.allclose(outs[0], module.eval()(ids), atol=1e-3)


def test_the_sizes_are_in_the_exported_configuration(tokens: Dataset, tmp_path: Path) -> None:
    SMALL.export(built(SMALL, tokens.info), tmp_path, tokens)
    config = json.loads((tmp_path / "config.json").read_text())
    expected = {"vocab_size": 260, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 32}
    assert {key: config[key] for key in expected} == expected
    assert config["architectures"] == ["GPT2LMHeadModel"]


def test_every_name_goes_to_transformers_and_back(describe: Callable[..., DataInfo]) -> None:
    module = built(SMALL, describe(20, 8))
    there = gpt2_layout.exported(module.state_dict())
    assert there["transformer.h.1.attn.c_attn.weight"].shape == (16, 48)
    assert there["transformer.h.0.mlp.c_proj.weight"].shape == (32, 16)
    other = built(SMALL, describe(20, 8), seed=1)
    other.load_state_dict(gpt2_layout.imported(other.state_dict(), there))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_heads_that_do_not_divide_the_width() -> None:
    (problem,) = GPT(model_dim=130, num_heads=4).problems(None)  # type: ignore[arg-type]
    assert str(problem) == "model.model_dim=130: must be a multiple of model.num_heads=4; nearest valid: 128"
    assert not list(GPT().problems(None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "data"),
    [
        (["model=gpt"], "pydocs"),
        (["model=gpt", "data=mnist"], "mnist"),
        (["data=wikitext2", "model=gpt"], "wikitext2"),
        (["model=gpt2"], "wikitext2"),
        (["model=tiny_lstm"], "pydocs"),
        (["model=small_transformer"], "pydocs"),
        (["model=simplenn"], "digits"),
    ],
)
def test_a_model_brings_its_data_and_what_is_typed_wins(overrides: list[str], data: str) -> None:
    from hydra import compose, initialize_config_dir

    conf = Path(__file__).parents[2] / "conf"
    with initialize_config_dir(str(conf), version_base="1.3"):
        config = compose("config", overrides=overrides)
    assert config.data["_target_"].startswith(f"smolcluster.data.{data}.")
