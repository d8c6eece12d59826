"""Decisions that follow a rule, as tables, and a small policy to learn them."""

import json
import random

import datasets
import pyarrow
from pyarrow import parquet

from perceivers.starcraft.data import DecisionData
from perceivers.starcraft.policy import PolicyConfig, UnitPolicy
from perceivers.starcraft.tables import SCHEMA, STATISTICS, VOCABULARY
from perceivers.starcraft.training import BehavioralCloning
from perceivers.training.optimization import Optimization
from tests.support.runs import run_settings

SIZES = {"width": 16, "latents": 4, "latent_channels": 16, "depth": 1, "heads": 2}
KINDS, ABILITIES = ["Probe", "Zealot", "Nexus"], ["Attack", "Move"]


def row(loop, kinds, chosen, ability=-1):
    count = len(kinds)
    return {
        "player": 1, "race": 0, "enemy_race": 2, "loop": loop, "scalars": [float(loop), 2.0], "kind": kinds,
        "owner": [0] * count, "x": [float(k) for k in kinds], "y": [0.5] * count, "age": [10] * count,
        "unseen": [3] * count, "flags": [4] * count, "groups": [512] * count, "unselected": [0] * count,
        "uncommanded": [5] * count, "chosen": chosen, "ability": ability, "target": -1, "point": [],
        "camera": [1.0, 0.5] if loop % 2 else [], "last_ability": loop % 3 - 1, "idle": 7,
    }  # fmt: skip


def decision(generator):
    """Rich players select their Zealots, poor ones their Probes; who has Zealots selected attacks the enemy's Nexus."""
    kinds = [generator.randrange(2) for _ in range(generator.randint(3, 6))] + [0, 1, 2]
    rich, commands = generator.random() < 0.5, generator.random() < 0.3
    chosen = [place for place, kind in enumerate(kinds[:-1]) if kind == rich]
    made = row(generator.randrange(9999), kinds, chosen, int(not rich) if commands else -1)
    made["owner"][-1], made["scalars"] = 2, [5000.0 if rich else 0.0, 2.0]
    made["flags"] = [4 if commands and place in chosen else 0 for place in range(len(kinds))]
    made["target"] = len(kinds) - 1 if commands and rich else -1
    return made


def write_tables(folder, monkeypatch, training=400):
    """Writes tables of decisions, 80 of them for validation and for test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    generator = random.Random(0)
    for name, count in (("a", training), ("b", 80), ("c", 80)):
        table = pyarrow.Table.from_pylist([decision(generator) for _ in range(count)], SCHEMA)
        parquet.write_table(table, folder / f"{name}.parquet")
    names = {"kinds": KINDS, "abilities": ABILITIES, "scalars": ["minerals", "vespene"]}
    (folder / VOCABULARY).write_text(json.dumps(names))
    (folder / STATISTICS).write_text(json.dumps({"replays": {name: {} for name in "abc"}, "refused": {}}))
    (folder / "split.json").write_text(json.dumps({"training": ["a"], "validation": ["b"], "test": ["c"]}))
    return DecisionData(str(folder), str(folder / "split.json"))


def small_run(output, tables, model=None, **training):
    training = {"max_epochs": 2, "batch_size": 16, "output": str(output)} | training
    return BehavioralCloning(
        model=PolicyConfig(**(SIZES | (model or {}))),
        data=tables,
        optimization=Optimization(lr=5e-3),
        **run_settings(**training),
    )


def small_policy(**changes):
    names = {"kinds": ["Zealot", "Probe"], "abilities": ["Move"], "scalars": ["minerals", "vespene"]}
    return UnitPolicy(**(names | SIZES | changes)).eval()
