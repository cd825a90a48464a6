import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from smolcluster.data.dataset import DataInfo, Dataset
from smolcluster.errors import ConfigError, DataError
from smolcluster.model.gpt2 import GPT2


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random GPT-2 as the hub has them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(
        vocab_size=260,
        n_positions=12,
        n_embd=16,
        n_layer=2,
        n_head=2,
        layer_norm_epsilon=1e-4,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # new ones are zero, trained ones are not
            nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder


def theirs(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, nn.Module)
    return model.eval()


def test_its_logits_are_those_of_transformers(pretrained: Path, describe: Callable[..., DataInfo]) -> None:
    module = GPT2(path=str(pretrained), max_seq_len=12).build(describe(260, 12)).eval()
    ids = torch.randint(0, 260, (3, 12))
    assert (module(ids) - theirs(pretrained)(ids).logits).abs().max() <= 1e-5
    assert (module(ids[:, :5]) - theirs(pretrained)(ids[:, :5]).logits).abs().max() <= 1e-5


def test_it_trains(pretrained: Path, describe: Callable[..., DataInfo]) -> None:
    module = GPT2(path=str(pretrained), dropout=0.0, max_seq_len=8).build(describe(260, 8))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    ids = torch.randint(0, 260, (4, 9))
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(module(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_dropout_is_the_fields(pretrained: Path, describe: Callable[..., DataInfo]) -> None:
    module = GPT2(path=str(pretrained), dropout=0.25, max_seq_len=8).build(describe(260, 8))
    assert {part.p for part in module.modules() if isinstance(part, nn.Dropout)} == {0.25}


def test_the_export_is_what_was_loaded(pretrained: Path, tokens: Dataset, tmp_path: Path) -> None:
    model = GPT2(path=str(pretrained), max_seq_len=8)
    folder = tmp_path / "out"
    folder.mkdir()
    model.export(model.build(tokens.info), folder, tokens)
    before, after = theirs(pretrained).state_dict(), theirs(folder).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = json.loads((folder / "config.json").read_text())
    assert (config["n_positions"], config["n_inner"], config["layer_norm_epsilon"]) == (12, 64, 1e-4)


def test_another_vocabulary_is_refused(pretrained: Path, describe: Callable[..., DataInfo]) -> None:
    with pytest.raises(DataError, match=rf"has 260 tokens, the data's tokenizer 512.*data\.tokenizer={pretrained}"):
        GPT2(path=str(pretrained), max_seq_len=8).build(describe(512, 8))


def test_more_positions_than_it_has_are_refused(pretrained: Path, describe: Callable[..., DataInfo]) -> None:
    with pytest.raises(ConfigError, match=r"^model\.max_seq_len=128: must be <= 12, .*; nearest valid: 12$"):
        GPT2(path=str(pretrained)).build(describe(260, 128))


def test_another_architecture_is_refused(pretrained: Path, tmp_path: Path, describe: Callable[..., DataInfo]) -> None:
    config = json.loads((pretrained / "config.json").read_text()) | {"activation_function": "relu"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((pretrained / "model.safetensors").read_bytes())
    with pytest.raises(DataError, match=r"not GPT-2's architecture.* has \{'activation_function': 'relu'"):
        GPT2(path=str(tmp_path), max_seq_len=8).build(describe(260, 8))


def test_weights_that_could_run_code_are_not_read(
    pretrained: Path, tmp_path: Path, describe: Callable[..., DataInfo]
) -> None:
    (tmp_path / "config.json").write_bytes((pretrained / "config.json").read_bytes())
    torch.save(theirs(pretrained).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"^model=gpt2 .*cannot be loaded.*model\.safetensors.*or model=gpt$"):
        GPT2(path=str(tmp_path), max_seq_len=8).build(describe(260, 8))


def test_a_folder_that_is_not_there(tmp_path: Path, describe: Callable[..., DataInfo]) -> None:
    with pytest.raises(DataError, match=r"^model\.path=.*nowhere: no such folder on this node$"):
        GPT2(path=str(tmp_path / "nowhere")).build(describe(260, 8))


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, describe: Callable[..., DataInfo]) -> None:
    monkeypatch.setattr("smolcluster.data.hub._ask", lambda: "no route")
    with pytest.raises(DataError) as caught:
        GPT2(hf_model_name="nobody/nothing").build(describe(260, 8))
    assert str(caught.value) == (
        "model=gpt2 (nobody/nothing): cannot be loaded (the hub is out of reach, no route); choose "
        "model.path=<folder with config.json and model.safetensors>, or model=gpt"
    )
