"""Kills small runs of every experiment, resumes them, and compares them with runs that were not killed.

    python -m tests.robustness.kills --kills 20 --seed 0

A run is killed before an update, at a step of writing a file, or at a random moment. Then the same command is given
again, with `training.resume` if there is a checkpoint. It must end with the same results, bit for bit.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from perceivers.errors import PerceiversError
from perceivers.training.learner import Learner
from tests.support import flow
from tests.support.experiments import DATA, RUNS
from tests.support.runs import differences, read_results

CONTEXT: Any = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.robustness.kills"])
SECONDS = 120


@dataclass
class Kill:
    """The moment at which a run is killed: before an update, before a call that writes a file, or after seconds."""

    update: int | None = None
    call: int | None = None
    seconds: float | None = None


def die(*_: Any) -> None:
    """Kills this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def count_calls(patch: pytest.MonkeyPatch, kill_at: int | None) -> list[str]:
    """Returns a list of the calls that write files, to which the run adds; dies before one of them.

    A file that is then being written is cut in half.
    """
    calls: list[str] = []

    def wrap(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            if kill_at == len(calls):
                if name == "chmod":
                    os.truncate(arguments[0], os.path.getsize(arguments[0]) // 2)
                die()
            calls.append(name)
            return original(*arguments, **options)

        patch.setattr(owner, name, wrapped)

    wrap(tempfile, "mkstemp")
    wrap(os, "fsync")
    for name in ("chmod", "replace", "unlink", "mkdir"):
        wrap(Path, name)
    return calls


def run(experiment: str, data: Path, output: Path, kill: Kill, settings: dict[str, Any], sender: Any) -> None:
    """Runs an experiment in this process, and sends how many updates and calls there were, or an error."""
    torch.set_num_threads(1)
    log = os.open(f"{output}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    updates = 0

    def before_update(self: Learner, batch: Any, batch_idx: int) -> None:
        nonlocal updates
        if kill.update == updates:
            die()
        updates += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "on_train_batch_start", before_update)
        flow.use_few_textures(patch)
        calls = count_calls(patch, kill.call)
        if kill.seconds is not None:
            signal.signal(signal.SIGALRM, die)
            signal.setitimer(signal.ITIMER_REAL, max(kill.seconds, 0.001))
        try:
            RUNS[experiment](data, output=output, **settings).run()
        except PerceiversError as error:
            sender.send(str(error))
        else:
            sender.send((updates, len(calls)))


def run_in_child(experiment: str, data: Path, output: Path, kill: Kill | None = None, **settings: Any) -> Any:
    """Runs an experiment in a process of its own; returns what it sent, or None if it was killed."""
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=run, args=(experiment, data, output, kill or Kill(), settings, sender))
    process.start()
    sender.close()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"{experiment} hangs, see {output}.log")
    if process.exitcode == -signal.SIGKILL:
        return None
    if process.exitcode != 0 or not receiver.poll():
        raise AssertionError(f"{experiment} ended with {process.exitcode}: {Path(f'{output}.log').read_text()[-3000:]}")
    return receiver.recv()


def resume(experiment: str, data: Path, output: Path, **settings: Any) -> Any:
    """Gives the same command again, with `training.resume` where there is something to resume."""
    has_checkpoint = (output / "checkpoints" / "last.ckpt").is_file()
    return run_in_child(experiment, data, output, resume=has_checkpoint, **settings)


class Victim:
    """An experiment, and the results of a run that was not killed."""

    def __init__(self, experiment: str, folder: Path, **settings: Any) -> None:
        self.experiment, self.folder, self.settings = experiment, folder, settings
        self.data = folder / "data"
        self.data.mkdir(parents=True)
        DATA.get(experiment, Path.exists)(self.data)
        start = time.perf_counter()
        self.updates, self.calls = run_in_child(experiment, self.data, folder / "whole", **settings)
        self.seconds = time.perf_counter() - start
        self.expected = read_results(folder / "whole")

    def choose(self, chance: random.Random, kind: int) -> Kill:
        """Returns a random moment: before an update, before a call that writes a file, or at any time."""
        if kind % 3 == 0:
            return Kill(update=chance.randrange(self.updates))
        if kind % 3 == 1:
            return Kill(call=chance.randrange(self.calls))
        return Kill(seconds=chance.uniform(0, self.seconds))

    def differences(self, kill: Kill, name: str) -> list[str]:
        """Kills a run and resumes it; returns the names of the results that are not those of the whole run."""
        output = self.folder / name
        run_in_child(self.experiment, self.data, output, kill, **self.settings)
        answer = resume(self.experiment, self.data, output, **self.settings)
        if isinstance(answer, str) and "is finished" not in answer and "holds a run already" not in answer:
            return [answer]
        return differences(read_results(output), self.expected)


def main() -> None:
    """Kills runs of all experiments, or of those named, and exits with 1 if one ended otherwise."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kills", type=int, default=20, help="number of kills of each experiment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(RUNS), help="names of experiments")
    found = parser.parse_args()
    folder, failed = Path(tempfile.mkdtemp(prefix="kills-")), 0
    for experiment in found.only:
        victim, equal = Victim(experiment, folder / experiment.replace(" ", "_")), 0
        for number in range(found.kills):
            chance = random.Random(f"{experiment} {found.seed} {number}")
            kill = victim.choose(chance, number)
            if problems := victim.differences(kill, str(number)):
                print(f"{experiment}, seed {found.seed}, {kill}, in {victim.folder / str(number)}: {problems[:3]}")
            equal += not problems
        failed += found.kills - equal
        print(f"{experiment:30} {equal} of {found.kills} equal", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
