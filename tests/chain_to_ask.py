"""A chain that can be asked: an encoder on a device's disk, a module's state in a cloud, and both in one process."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

from flwr_splitkd.data import byte_tokenizer
from flwr_splitkd.data.questions import encode_unanswered
from flwr_splitkd.models import PretrainedModel, build_skeleton, fingerprint, inner_model
from flwr_splitkd.models.serial_adapter import SerialAdapterConfig
from flwr_splitkd.split import find_layout
from flwr_splitkd.store import encoder_folder
from flwr_splitkd.tiers.cloud import CloudLLM, CloudTask, TaskSettings
from flwr_splitkd.tiers.cloud.store import TaskStore
from flwr_splitkd.tiers.device.chain import OwnEncoder

LAYERS, WIDTH, NEW = 3, 16, 6
CONTEXT, QUESTION = "json.dumps(indent=2)", "What is indent?"
_SIZES = {"vocab_size": 259, "num_attention_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


class ChainToAsk:
    """Models, tokenizers, an encoder's folder and a task's state below `folder`; nothing is as it was initialised."""

    def __init__(self, folder: Path) -> None:
        self.slm, self.llm, self.encoder = folder / "slm", folder / "llm", folder / "encoder"
        torch.manual_seed(0)
        sizes = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": LAYERS}
        _save(RobertaModel(RobertaConfig(**_SIZES, **sizes, max_position_embeddings=100)), self.slm)
        sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_key_value_heads": 2}
        _save(LlamaForCausalLM(LlamaConfig(**_SIZES, **sizes, max_position_embeddings=256)), self.llm)
        # With the reference loss, for which a question has no tokens of its own.
        self.settings = TaskSettings(slm_width=WIDTH, peft=SerialAdapterConfig(bottleneck=4), reference_loss=True)
        self.keep_encoder(self.encoder)
        self.task = CloudLLM(PretrainedModel(self.llm, dtype="float32")(), None).add_task("qa", self.settings)
        self.task.load_state(_moved(self.task.state()))

    def keep_encoder(self, folder: Path) -> None:
        """Make `folder` a device's, as of the end of its second round."""
        skeleton = inner_model(build_skeleton(self._slm))
        own = OwnEncoder(folder, skeleton, find_layout(skeleton), self._slm)
        units = {unit: _moved(own.read(unit)) for unit in own.versions}
        own.refresh(units, {"next_step": 7, "server_round": 2})
        self._units = units

    def keep_encoder_of(self, device: str, run: str) -> Path:
        """The same where a device keeps that of a run."""
        skeleton = inner_model(build_skeleton(self._slm))
        folder = encoder_folder(device, fingerprint(skeleton, find_layout(skeleton)).digest, run)
        self.keep_encoder(folder)
        return folder

    def keep_module(self, state_folder: Path) -> None:
        """Make `state_folder` the cloud's."""
        TaskStore(state_folder / self.task.name).commit(self.task.state(), {})

    @property
    def _slm(self) -> PretrainedModel:
        return PretrainedModel(self.slm, task="encoder", dtype="float32")

    def batch(self) -> dict[str, Tensor]:
        return encode_unanswered(CONTEXT, QUESTION, byte_tokenizer())

    def answer(self) -> list[int]:
        """What the composite model says: the whole encoder and the LLM with its module, in this process."""
        encoder = self._slm().eval()
        state = {name.removeprefix("weight/"): t for unit in self._units.values() for name, t in unit.items()}
        encoder.load_state_dict(state)
        batch = self.batch()
        return generated(self.task, encoder, batch)


@torch.no_grad()
def generated(task: CloudTask, encoder: nn.Module, batch: dict[str, Tensor]) -> list[int]:
    hidden = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    tokens = task.generate(hidden, batch["attention_mask"], NEW)
    return [int(token) for token in tokens[0] if token >= 0]


def _save(model: nn.Module, folder: Path) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)  # type: ignore[operator]
    byte_tokenizer().save_pretrained(folder)


def _moved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) if name.startswith("weight/") else tensor
        for name, tensor in state.items()
    }
