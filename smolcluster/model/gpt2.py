"""GPT-2 with pretrained weights, from the hub or a local folder; trainable, and cut like our own GPT.

transformers reads the weights (safetensors only, nothing that runs code); what trains and serves is our GPT with
them, whose logits are those of ``GPT2LMHeadModel``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from smolcluster.data import hub
from smolcluster.data.dataset import DataInfo, Dataset
from smolcluster.errors import ConfigError, DataError, Problem
from smolcluster.model import export, gpt2_layout
from smolcluster.spec.schema import LocalPath, Range

if TYPE_CHECKING:
    from torch import nn

    from smolcluster.spec.run import RunSpec

FIXED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
"""What a configuration must say for the architecture to be GPT-2's own."""


@dataclass(frozen=True, kw_only=True)
class GPT2:
    """A pretrained GPT-2 of any size."""

    accepts: ClassVar[tuple[str, ...]] = ("tokens",)

    hf_model_name: str = "openai-community/gpt2"
    """Name on the hub; also openai-community/gpt2-medium, distilbert/distilgpt2 and others of this architecture."""
    revision: str = "main"
    """Branch, tag or commit of the hub's model."""
    path: Annotated[str | None, LocalPath()] = None
    """A local folder with config.json and model.safetensors, used instead of the hub; null: the hub."""
    dropout: Annotated[float, Range(ge=0, lt=1, unit="probability")] = 0.1
    """Dropout on embeddings, attention weights and residuals while training."""
    max_seq_len: Annotated[int, Range(ge=1, le=131_072, unit="tokens")] = 128
    """Length of a training sample; at most the model's positions (GPT-2: 1024)."""

    def problems(self, spec: RunSpec) -> Iterable[Problem]:
        return ()

    def missing(self) -> Iterable[Problem]:
        return hub.missing("model.path", self.path)

    def build(self, info: DataInfo) -> nn.Module:
        from smolcluster.model.nn import gpt

        source = self.path or self.hf_model_name
        pretrained = self._read(source)
        self._check(source, pretrained.config, info)
        config = pretrained.config
        module = gpt.GPT(
            vocab_size=config.vocab_size,
            num_positions=config.n_positions,
            model_dim=config.n_embd,
            num_layers=config.n_layer,
            num_heads=config.n_head,
            ff_dim=config.n_inner or 4 * config.n_embd,
            dropout=self.dropout,
            epsilon=config.layer_norm_epsilon,
        )
        module.load_state_dict(gpt2_layout.imported(module.state_dict(), pretrained.state_dict()))
        return module

    def export(self, module: nn.Module, folder: Path, dataset: Dataset) -> None:
        export.as_gpt2(module, folder, dataset)

    def _read(self, source: str) -> Any:
        """transformers' own model, on the CPU."""
        folder = Path(self.path).expanduser() if self.path else None
        if folder is not None and not folder.is_dir():
            raise DataError(f"model.path={self.path}: no such folder on this node")

        def read() -> Any:
            from transformers import GPT2LMHeadModel

            place = {"revision": self.revision} if folder is None else {"local_files_only": True}
            return GPT2LMHeadModel.from_pretrained(str(folder or source), use_safetensors=True, **place)

        instead = "model.path=<folder with config.json and model.safetensors>, or model=gpt"
        return hub.load(read, what=f"model=gpt2 ({source})", instead=instead, local=folder is not None)

    def _check(self, source: str, config: Any, info: DataInfo) -> None:
        differing = {
            key: getattr(config, key, None) for key, value in FIXED.items() if getattr(config, key, None) != value
        }
        if differing:
            raise DataError(f"model=gpt2 ({source}): not GPT-2's architecture, its configuration has {differing}")
        if config.vocab_size != info.vocab_size:
            raise DataError(
                f"model=gpt2 ({source}) has {config.vocab_size} tokens, the data's tokenizer {info.vocab_size}: they "
                f"must be the same; choose data.tokenizer={source}"
            )
        if self.max_seq_len > config.n_positions:
            rule = f"must be <= {config.n_positions}, the positions of {source}"
            nearest = str(config.n_positions)
            raise ConfigError([Problem(key="model.max_seq_len", value=self.max_seq_len, rule=rule, nearest=nearest)])
