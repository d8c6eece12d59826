"""Names that changed since release 0.1.0: to load models that it saved, and to name the new field of a config."""

from collections.abc import Mapping
from typing import Any

FIELDS = {
    "curriculum.growing": "curriculum.ramp_fraction",
    "curriculum.plain": "curriculum.warmup_fraction",
    "data.decoded": "data.max_masked_fraction",
    "data.documents": "data.documents_per_pack",
    "data.evaluated": "data.eval_windows",
    "data.draws": "data.windows_per_epoch",
    "data.held_out": "data.validation_fraction data.validation_pairs",
    "data.held_out_where": "data.validation_filter",
    "data.masked": "data.mask_rate",
    "data.memory": "data.cache_gb",
    "data.scenes.bending": "data.scenes.shear_scale",
    "data.scenes.tail": "data.scenes.motion_exponent",
    "data.scenes.turning": "data.scenes.rotation_scale",
    "data.steps": "data.steps_per_epoch",
    "model.blocks": "model.num_blocks",
    "model.cross_attends": "model.num_cross_attends",
    "model.cross_widening": "model.cross_widening_factor",
    "model.decoder_widening": "model.decoder_widening_factor",
    "model.several": "model.multilabel",
    "model.start": "model.initialization",
    "model.widening": "model.widening_factor",
    "optimization.decay": "optimization.decayed_parameters",
    "optimization.flat": "optimization.flat_fraction",
    "optimization.name": "optimization.optimizer",
    "optimization.clip_norm": "trainer.gradient_clip_val",
    "training.accelerator": "trainer.accelerator",
    "training.accumulate": "trainer.accumulate_grad_batches",
    "training.accumulate_grad_batches": "trainer.accumulate_grad_batches",
    "training.devices": "trainer.devices",
    "training.epochs": "trainer.max_epochs",
    "training.nodes": "trainer.num_nodes",
    "training.precision": "trainer.precision",
}
"""Fields of configs; more than one new name where experiments differ."""

MODULES = {
    "ArrayInput ArrayOutput": "adapters.array",
    "AudioInput AudioOutput ConvAudioInput MelInput": "adapters.audio",
    "ElementOutput": "adapters.set",
    "ConvStem ImageInput Patches": "adapters.image",
    "LabelInput LabelOutput": "adapters.label",
    "TextInput TextOutput": "adapters.text",
    "VideoInput VideoOutput": "adapters.video",
    "FlowOutput FramePairInput": "flow.adapter",
    "PerceiverIO": "model.perceiver_io",
    "FourierPositions LearnedPositions": "model.positions",
    "SetEncoder": "set_encoder",
    "EntityTransformer": "starcraft.entity_transformer",
    "UnitPolicy": "starcraft.policy",
    "BERT": "text.bert",
    "TaskOutput": "text.task_output",
}
"""Modules of the classes that a saved model could consist of, by their names then."""

CLASSES = {"ElementOutput": "SetOutput"}
"""Classes of saved models that have another name now."""

ARGUMENTS = {
    "PerceiverIO": {
        "blocks": "num_blocks",
        "cross_attends": "num_cross_attends",
        "cross_widening": "cross_widening_factor",
        "decoder_widening": "decoder_widening_factor",
        "widening": "widening_factor",
    },
    "BERT": {"widening": "widening_factor", "extra": "num_task_tokens"},
    "ConvStem Patches VideoInput VideoOutput": {"colours": "in_channels"},
    "EntityTransformer SetEncoder": {"widening": "widening_factor", "answer_channels": "output_channels"},
    "LabelOutput": {"several": "multilabel"},
    "TextInput": {"extra": "num_task_tokens"},
}
"""Arguments of classes of saved models, by the names of the classes then."""

VALUES = {("gelu", "none"): "exact", ("padding", "port"): "transformers", ("selection", "separate"): "independent"}
"""Values of arguments of saved models."""


def update_saved(tree: Any) -> Any:
    """Returns the description of a saved model of version 1 of our format with today's names."""
    if isinstance(tree, list):
        return [update_saved(item) for item in tree]
    if not isinstance(tree, Mapping):
        return tree
    kind = str(tree.get("class", ""))
    arguments = next((names for kinds, names in ARGUMENTS.items() if kind in kinds.split()), {})
    updated = {}
    for name, value in tree.items():
        known = isinstance(value, str) and kind
        updated[arguments.get(name, name)] = VALUES.get((name, value), value) if known else update_saved(value)
    module = next((place for kinds, place in MODULES.items() if kind in kinds.split()), None)
    if module is not None:
        updated["class"] = f"perceivers.{module}:{CLASSES.get(kind, kind)}"
    return updated
