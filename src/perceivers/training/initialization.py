"""The weights that a run starts with, and those of them that it trains."""

from lightning.pytorch.utilities import rank_zero_only

from perceivers.checkpoints.load import load_model
from perceivers.checks import check_field
from perceivers.model.saving import Model
from perceivers.model.sizes import ModelConfig
from perceivers.model.transfer import transfer_weights
from perceivers.training.lora import Adapter, add_lora, make_peft_config
from perceivers.training.parts import find_equal, find_trained, freeze_parts


def initialize(model: Model, config: ModelConfig, is_resumed: bool) -> Adapter | None:
    """Gives a new model the weights of `config.init`, as far as they fit, and freezes what the run does not train.

    Prints what of the weights does not fit, unless the run is resumed: its checkpoint has the weights.

    Returns:
        The adapter that low-rank adaptation trains, None without it.

    Raises:
        PerceiversError: the pretrained model cannot be loaded or, if `strict`, does not fit; or a setting is wrong.
    """
    rank, unchanged = config.lora.rank, set[str]()
    check_field("model.lora.rank", rank, not rank or config.init is not None, "0 without model.init")
    if config.init is not None:
        pretrained = load_model(config.init)
        found = transfer_weights(pretrained, model)
        if config.strict:
            found.check_complete(f"model.init = {config.init}")
        if not is_resumed:
            rank_zero_only(print)("\n  ".join([f"From {config.init}:", *found.describe()]))
        unchanged = find_equal(pretrained, model)
    is_default = config.train is None and config.freeze is None
    freeze_parts(model, ["head"] if rank and is_default else config.train, config.freeze)
    if not rank:
        return None
    adapter = Adapter(make_peft_config(model, config.lora, config.init), unchanged - find_trained(model))
    add_lora(model, adapter.config)
    return adapter
