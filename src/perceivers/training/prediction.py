"""Predicts all rows of data and writes a table, on any number of devices and machines: `perceivers predict`.

Rows are written in parts, to a folder beside the table, as they are predicted. If the command is killed and started
again, it predicts only the rows that are in no part. In the end, the parts become the table, in the order of the data.

Shape suffixes: B batch, N latents, D channels
"""

import csv
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

from lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from perceivers.checkpoints.run import compute_checksum
from perceivers.checks import Count, Range
from perceivers.command import Command, Json, Metavar, ModelArgument, Precision, add_options, print_answer
from perceivers.data.splits import SplitOption
from perceivers.errors import PerceiversError, quote
from perceivers.inference import check_answers, check_folder
from perceivers.model.saving import PART, atomic_write
from perceivers.prediction import Inputs, Predictor, RowSamples
from perceivers.progress import Progress
from perceivers.training.checkpoints import hold_folder
from perceivers.training.evaluation import find_experiment
from perceivers.training.trainer import build_trainer
from perceivers.values import read_json

SUFFIXES = (".parquet", ".csv", ".jsonl")
"""Kinds of tables that are written."""

SECONDS_PER_PART = 10.0
"""Seconds after which predicted rows are written; in a long run, a hundredth of the time that has passed."""

BYTES_PER_BLOCK = 2**30
"""Approximate bytes of parts that are put in order at a time."""

SETTINGS = "settings.json"
ROW = "_row"
"""The column of a part with the indices of its rows."""

Latents = Literal["mean", "all"]


def find_prediction(source: str | Path) -> Command:
    """Returns the function of `perceivers predict` for a saved model, with the options that its experiment adds.

    Raises:
        PerceiversError: there is no such model, its experiment is unknown, or it does not predict rows of a table.
    """
    experiment = find_experiment(source)
    kind = experiment.predictor
    refusal = f"the predictions of {source} are not rows of a table"
    instead = "" if experiment.command is None else f": use perceivers {experiment.command}"
    if kind is None:
        raise PerceiversError(f"{refusal}{instead}.")

    def predict(
        model: ModelArgument,
        *,
        data: Annotated[str, "a folder, a table (.csv, .tsv, .jsonl, .parquet), or a data set on the Hub"],
        out: Annotated[Path, "table to write, .parquet, .csv or .jsonl: a row for each row of the data, in order"],
        split: SplitOption = None,
        latents: Annotated[Latents | None, "also write the latents of the model: their mean, or all"] = None,
        batch_size: Annotated[Count | None, "rows that each device computes at a time"] = None,
        workers: Annotated[int, Range(least=0), "data-loading processes of each device (0)"] = 0,
        accelerator: Annotated[str, "type of the devices, as in Lightning"] = "auto",
        devices: Annotated[str, "devices of each machine, as in Lightning"] = "auto",
        num_nodes: Annotated[Count, "number of machines", Metavar("NUMBER")] = 1,
        dtype: Precision = None,
        json: Json = False,
        **options: Any,
    ) -> None:
        """Predicts the files of a folder, or the rows of a table or data set, and writes a table.

        A row that cannot be read has the reason in its column "error". The same command continues after it was killed.
        """
        parts = Parts(out)
        parts.check_output()
        predictor = kind(model, "cpu", dtype, **options)
        if latents is None and not predictor.outputs:
            raise PerceiversError(f"{refusal}{instead}, or add --latents.")
        if latents is not None and not hasattr(predictor.model, "encode"):
            raise PerceiversError(f"{model} is a {type(predictor.model).__name__}, without latents: omit --latents.")
        where = {"accelerator": accelerator, "num_nodes": num_nodes}
        where["devices"] = int(devices) if devices.isdecimal() else devices
        inputs = predictor.open(data, split)
        settings = {"data": data, "split": split, "latents": latents, "dtype": dtype} | options
        settings["model"] = compute_checksum(predictor.model.state_dict())
        errors = predict_rows(parts, predictor, inputs, settings, batch_size or predictor.batch_size, workers, where)
        if errors is not None:
            problems = f"; {errors:,} could not be read, see the column error" if errors else ""
            answer = {"out": str(out), "rows": len(inputs.names), "errors": errors}
            print_answer(answer, f"{out}: {inputs.part}{problems}.", json)

    return add_options(predict, kind.__init__)


def predict_rows(
    parts: "Parts",
    predictor: Predictor,
    inputs: Inputs,
    settings: Mapping[str, Any],
    batch_size: int,
    workers: int,
    where: Mapping[str, Any],
) -> int | None:
    """Predicts the rows that are in no part, and writes the table of all.

    Returns:
        The number of rows that could not be read; None in other processes than the first.

    Args:
        parts: the rows that were predicted before.
        predictor: the model.
        inputs: all rows.
        settings: the settings that every part must have been predicted with.
        batch_size: rows that each device computes at a time.
        workers: data-loading processes of each device.
        where: arguments of Lightning's Trainer for devices and machines.
    """
    writer = PartWriter(parts, len(inputs.names))
    trainer = build_trainer(where, [writer], [], logger=False, enable_progress_bar=False, enable_model_summary=False)
    parts.set_columns(predictor.columns, settings["latents"])
    with hold_folder(parts.folder) if trainer.is_global_zero else nullcontext():
        parts.check_settings(settings, inputs, trainer.is_global_zero)
        missing = parts.find_missing(len(inputs.names))
        writer.done = len(inputs.names) - len(missing)
        samples = RowSamples(inputs, missing)
        loader = samples.loader(batch_size, None, workers, trainer.global_rank, trainer.world_size)
        if missing:
            run(trainer, RowPredictor(predictor, settings["latents"]), loader, parts.out)
        if trainer.is_global_zero:
            return parts.merge(inputs)
    return None


def run(trainer: Trainer, module: "RowPredictor", loader: DataLoader[Any], out: Path) -> None:
    """Predicts the batches of all processes, and waits until all have written their parts."""
    try:
        trainer.predict(module, Batches(loader), return_predictions=False)
    except SystemExit as stop:  # Lightning's status for Ctrl-C is that of an error
        print(f"Stopped: the same command continues {out}.", file=sys.stderr)
        raise SystemExit(130) from stop
    except Exception:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)  # other processes would wait for this one
        raise
    trainer.strategy.barrier()


class Batches:
    """The batches of a loader, of which Lightning would make another loader."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


class RowPredictor(LightningModule):
    """Predicts batches of rows."""

    def __init__(self, predictor: Predictor, latents: Latents | None) -> None:
        super().__init__()
        self.predictor, self.latents = predictor, latents
        self.model = predictor.model  # Lightning moves it to its device

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> list[dict[str, Any]]:
        """Returns the rows of a batch of `RowSamples`, with the columns of a part."""
        rows = [{ROW: row, "error": reason} for row, reason in batch["errors"].items()]
        if not batch["rows"]:
            return rows
        outputs, latents_BND = self.predictor.compute(batch["batch"])
        answers = self.predictor.rows(check_answers(outputs)) or [{} for _ in batch["rows"]]
        found: list[dict[str, Any]] = [{ROW: row, **answer} for row, answer in zip(batch["rows"], answers, strict=True)]
        if self.latents is not None and latents_BND is not None:
            check_answers({"latents": latents_BND})
            for row, latents_ND in zip(found, latents_BND.float().cpu(), strict=True):
                row["latents"] = latents_ND.mean(0).numpy() if self.latents == "mean" else list(latents_ND.numpy())
        return rows + found


class PartWriter(Callback):
    """Writes rows to parts as they are predicted, and shows the progress with an estimate of the time left.

    Attributes:
        done: number of rows that are predicted, by all processes.
    """

    done = 0

    def __init__(self, parts: "Parts", total: int) -> None:
        self.parts, self.total = parts, total
        self.rows: list[dict[str, Any]] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = self.last_part = time.perf_counter()
        self.progress = Progress("rows", self.total, self.done, trainer.is_global_zero)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *others: Any
    ) -> None:
        self.rows += outputs
        now, count = time.perf_counter(), len(outputs) * trainer.world_size
        self.done = min(self.total, self.done + count)
        self.progress.update(self.done - self.progress.done)
        if now - self.last_part > max(SECONDS_PER_PART, (now - self.start) / 100):
            self.write()
            self.last_part = time.perf_counter()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write()
        self.progress.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.write()

    def write(self) -> None:
        """Writes the rows that are in no part."""
        if self.rows:
            self.parts.write(self.rows)
            self.rows = []


class Parts:
    """The rows that were predicted, in parquet files in a folder beside the table that they will become.

    Args:
        out: path of the table.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out.with_name(f"{out.name}.parts")
        self.schema: Any = None

    def check_output(self) -> None:
        """Raises a PerceiversError if the table cannot be written, or exists."""
        if self.out.suffix not in SUFFIXES:
            raise PerceiversError(f"{self.out} is no table: its name must end in {', '.join(SUFFIXES)}.")
        check_folder(self.out)
        if self.out.exists() and not self.folder.is_dir():
            raise PerceiversError(f"{self.out} exists: delete it, or give another --out.")

    def set_columns(self, columns: Mapping[str, type], latents: Latents | None) -> None:
        """Sets the columns of the rows."""
        import pyarrow as pa

        types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
        vector = pa.list_(pa.float32())
        fields = {ROW: pa.int64(), **{name: types[kind] for name, kind in columns.items()}}
        if latents is not None:
            fields["latents"] = vector if latents == "mean" else pa.list_(vector)
        self.schema = pa.schema(fields | {"error": pa.string()})

    def check_settings(self, settings: Mapping[str, Any], inputs: Inputs, is_first_process: bool) -> None:
        """Writes the settings and a checksum of the rows; raises a PerceiversError if those of the parts differ."""
        now = json.loads(json.dumps({**settings, "rows": inputs.checksum}))
        file = self.folder / SETTINGS
        if file.is_file():
            before = read_json(file)
            for name, value in now.items():
                if before.get(name) != value:
                    what = {"model": "the model is", "rows": f"the rows of {settings['data']} are"}.get(name)
                    given = f"{name} = {quote(value)}, but it was begun with {quote(before.get(name))}"
                    problem = given if what is None else f"{what} not what it was begun with"
                    raise PerceiversError(f"{self.out} cannot be continued: {problem}; give another --out.")
        elif is_first_process:
            atomic_write(file, lambda path: path.write_text(json.dumps(now, indent=2) + "\n"))
        if is_first_process:
            for left in self.folder.glob(f".*{PART}"):  # by a process that was killed
                left.unlink()

    def files(self) -> list[Path]:
        """Returns the files of the parts."""
        return sorted(self.folder.glob("*.parquet"))

    def find_missing(self, total: int) -> list[int]:
        """Returns the indices of the rows that are in no part."""
        import pyarrow.parquet as pq

        done = {row for file in self.files() for row in pq.read_table(file, columns=[ROW])[ROW].to_pylist()}
        return [row for row in range(total) if row not in done]

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Writes a part, which is called after its first row."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {name: [row.get(name) for row in rows] for name in self.schema.names}
        table = pa.table(columns, self.schema)
        atomic_write(self.folder / f"{rows[0][ROW]:012d}.parquet", lambda file: pq.write_table(table, file))

    def merge(self, inputs: Inputs) -> int:
        """Writes the table of all rows in order, deletes the parts, and returns the number of rows with an error."""
        import pyarrow as pa

        errors = 0

        def read_named() -> Iterator[Any]:
            nonlocal errors
            for table in self.read_sorted(len(inputs.names)):
                errors += len(table) - table["error"].null_count
                names = [inputs.names[row] for row in table[ROW].to_pylist()]
                yield table.drop_columns([ROW]).add_column(0, inputs.unit, pa.array(names))

        atomic_write(self.out, lambda file: write_table(file, self.out.suffix, read_named()))
        shutil.rmtree(self.folder)
        return errors

    def read_sorted(self, total: int) -> Iterator[Any]:
        """Yields all rows in order, about `BYTES_PER_BLOCK` at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        blocks = 1 + sum(file.stat().st_size for file in self.files()) // BYTES_PER_BLOCK
        step = -(-total // blocks)
        for start in range(0, total, step):
            block = [(ROW, ">=", start), (ROW, "<", start + step)]
            tables = [pq.read_table(file, schema=self.schema, filters=block) for file in self.files()]
            yield pa.concat_tables(tables).sort_by(ROW)


def write_table(path: Path, suffix: str, tables: Iterator[Any]) -> None:
    """Writes tables, one after another, to a file: lists in CSV are JSON."""
    import pyarrow.parquet as pq

    if suffix == ".parquet":
        first = next(tables)
        with pq.ParquetWriter(path, first.schema) as writer:
            for table in (first, *tables):
                writer.write_table(table)
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        for index, table in enumerate(tables):
            if suffix == ".csv" and index == 0:
                lines.writerow(table.column_names)
            for batch in table.to_batches(max_chunksize=1000):
                for row in batch.to_pylist():
                    if suffix == ".jsonl":
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    else:
                        lines.writerow(json.dumps(cell) if isinstance(cell, list) else cell for cell in row.values())
