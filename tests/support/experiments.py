"""A small run of every experiment, and its data."""

import pytest

from perceivers.checkpoints.load import pretrained_config
from perceivers.presets import create_model
from perceivers.starcraft.data import DecisionData
from perceivers.tables.data import TableData
from perceivers.tables.model import TableModelConfig
from perceivers.tables.training import TableExperiment
from perceivers.text.fine_tuning import TextClassification
from perceivers.text.labeled import LabeledTextData
from tests.support import causal, clips, fine_tuning, flow, glue, images, pretraining, starcraft
from tests.support.fine_tuning import Several


def write_language_model(folder):
    sizes = {"latents": 4, "channels": 16, "depth": 1, "v_channels": 16}
    create_model("language_bytes", length=24, **sizes).save(folder / "language")


def write_reviews(folder):
    write_language_model(folder)
    fine_tuning.write_csv(folder / "reviews.csv", fine_tuning.labeled(40, 0))


def write_glue(folder):
    write_language_model(folder)
    glue.write_glue(folder)


def write_tables(folder):
    with pytest.MonkeyPatch.context() as patch:
        starcraft.write_tables(folder, patch, training=160)


def write_things(folder):
    rows = [f"{index % 7}.5,word{index % 3} and{index},{'red' if index % 2 else 'blue'}" for index in range(60)]
    (folder / "things.csv").write_text("size,name,color\n" + "\n".join(rows) + "\n")


DATA = {
    "masked_language": lambda folder: pretraining.write_text(folder / "text.txt"),
    "causal_language": lambda folder: causal.write_text(folder / "text.txt"),
    "text_classification": write_reviews,
    "glue": write_glue,
    "clip_classification": clips.write_tones,
    "autoencoding": clips.write_clips,
    "behavioral_cloning": write_tables,
    "table": write_things,
}
"""Writes the data of an experiment to a folder."""


def text_classification(folder, **training):
    data = LabeledTextData(str(folder / "reviews.csv"))
    model = pretrained_config(folder / "language")
    return TextClassification(model=model, data=data, **fine_tuning.settings(max_epochs=2, **training))


def several_tasks(folder, **training):
    settings = fine_tuning.settings(max_epochs=2, **training)
    return Several(model=fine_tuning.config(), method="multitask_query", **settings)


def glue_run(folder, **training):
    return glue.small_run(folder / "language", folder, tasks=["RTE"], **training)


def behavioral_cloning(folder, **training):
    return starcraft.small_run(tables=DecisionData(str(folder), str(folder / "split.json")), **training)


def table_run(folder, **training):
    """Two epochs of six updates; training draws cells to hide and words to leave out."""
    return TableExperiment(
        model=TableModelConfig(latents=4, channels=16, depth=1, heads=2, dropout=0.1),
        data=TableData(str(folder / "things.csv"), hide=0.2),
        inputs={"size": "number", "name": "text"},
        outputs={"color": "category"},
        **fine_tuning.settings(max_epochs=2, **training),
    )


RUNS = {
    "image_classification": lambda folder, **training: images.small_run(**training),
    "masked_language": lambda folder, **training: pretraining.small_run(text=folder / "text.txt", **training),
    "causal_language": lambda folder, **training: causal.small_run(text=folder / "text.txt", **training),
    "text_classification": text_classification,
    "several tasks": several_tasks,
    "glue": glue_run,
    "optical_flow": lambda folder, **training: flow.small_run(**training),
    "clip_classification": lambda folder, **training: clips.classification_run(
        data=folder, model=clips.SOUND, **training
    ),
    "autoencoding": lambda folder, **training: clips.autoencoding_run(data=folder, **training),
    "behavioral_cloning": behavioral_cloning,
    "table": table_run,
}
"""Makes a small run of an experiment, on the data of a folder."""
