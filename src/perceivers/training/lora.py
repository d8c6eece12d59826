"""Training by low-rank adaptation with `peft`."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import nn

from perceivers.checkpoints.adapter import ADAPTER_WEIGHTS, PREFIX
from perceivers.checkpoints.run import open_checkpoint, read_weights
from perceivers.checks import check_field
from perceivers.extras import require_extra
from perceivers.model.attention import MLP, Attention
from perceivers.model.lora import Lora
from perceivers.model.saving import CHECKSUM, CONFIG, atomic_write, read_config
from perceivers.training.checkpoints import LAST


def find_layers(model: nn.Module, lora: Lora) -> list[str]:
    """Returns the names of the layers to adapt; raises a PerceiversError for one that attention and MLPs lack."""
    names = [
        f"{prefix}.{name}"
        for prefix, part in model.named_modules()
        if isinstance(part, Attention | MLP)
        for name, layer in part.named_children()
        if isinstance(layer, nn.Linear)
    ]
    known = dict.fromkeys(name.rpartition(".")[2] for name in names)
    for layer in lora.layers:
        check_field("model.lora.layers", list(lora.layers), layer in known, f"some of {', '.join(known)}")
    return [name for name in names if name.rpartition(".")[2] in lora.layers]


def make_peft_config(model: nn.Module, lora: Lora, init: str | None) -> Any:
    """Returns the settings in the form of `peft`; raises a PerceiversError if it is not installed."""
    require_extra("lora")
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=find_layers(model, lora),
        base_model_name_or_path=init,
    )


def add_lora(model: nn.Module, config: Any) -> None:
    """Adds updates of low rank to the layers of a model; what is trained besides stays so."""
    from peft import inject_adapter_in_model

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    inject_adapter_in_model(config, model)  # freezes all others
    for parameter in trained:
        parameter.requires_grad_(True)


class Adapter(NamedTuple):
    """The weights that a run learns besides those of the pretrained model.

    Attributes:
        config: settings in the form of `peft`.
        unchanged: names of weights that are those of the pretrained model, and are left out.
    """

    config: Any
    unchanged: Collection[str]

    def write(self, folder: Path) -> None:
        """Writes the folder "adapter" to the folder of a merged model of a run, from the run's last checkpoint."""
        target, weights = folder / "adapter", read_weights(open_checkpoint(folder.parent / "checkpoints" / LAST))
        tensors = {
            PREFIX + name.replace(".default.", "."): tensor.contiguous()
            for name, tensor in ((name.replace(".base_layer.", "."), tensor) for name, tensor in weights.items())
            if name not in self.unchanged
        }
        atomic_write(target / ADAPTER_WEIGHTS, lambda file: save_file(tensors, file, metadata={"format": "pt"}))
        self.config.save_pretrained(target)
        described = {name: value for name, value in read_config(folder).items() if name != CHECKSUM}
        text = json.dumps(described, indent=2) + "\n"
        atomic_write(target / CONFIG, lambda file: file.write_text(text))
