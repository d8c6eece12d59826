"""Damages files of every format that is read, and checks that each is read, or refused in one sentence.

    python -m tests.robustness.fuzz --cases 3000 --seed 0

Every case runs in a child process with a limit of time and memory. A case fails if it raises anything but a
PerceiversError of one line, takes longer than `SECONDS`, or needs more than `MEMORY` bytes.
"""

import argparse
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perceivers.errors import PerceiversError

SECONDS = 20
MEMORY = 10**9
NUMBERS = [b"0", b"-1", b"1e999", b"nan", b"9" * 5000, b"4294967296", b"null", b"true", b'"x"', b"[]", b"{}"]
STRINGS = [
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r\n",
    b"\x1b[31m",
    b"../../x",
    b"[" * 2000,
    b"{" * 2000,
    b'"',
    b"'",
]


def damage(content: bytes, chance: random.Random) -> bytes:
    """Returns a file's content with one to three random changes."""
    for _ in range(chance.choice([1, 1, 2, 3])):
        at, size = chance.randrange(len(content) + 1), chance.choice([1, 2, 4, 8, 64, 1024])
        cut = content[at : at + size]
        numbers = [*re.finditer(rb"-?\d+(\.\d+)?", content[:4096])]
        change = chance.randrange(9)
        if change == 0:
            content = content[:at]
        elif change == 1:
            content = content[:at] + content[at + size :]
        elif change == 2:
            content = content[:at] + chance.randbytes(len(cut)) + content[at + size :]
        elif change == 3:
            content = content[:at] + cut * chance.choice([2, 50]) + content[at + size :]
        elif change == 4:
            content = content[:at] + chance.choice([b"\xff" * 4, b"\x00" * 8, b"\x7f\xff\xff\xff"]) + content[at + 4 :]
        elif change == 5:
            content = content[:at] + chance.choice(STRINGS) + content[at:]
        elif change == 6 and numbers:
            found = chance.choice(numbers)
            content = content[: found.start()] + chance.choice(NUMBERS) + content[found.end() :]
        elif change == 7:
            lines = content.split(b"\n")
            del lines[chance.randrange(len(lines))]
            content = b"\n".join(lines)
        else:
            lines = content.split(b"\n")
            chance.shuffle(lines)
            content = b"\n".join(lines)
    return content


def damage_path(path: Path, chance: random.Random) -> None:
    """Damages a file, or a file below a folder: its content, or rarely the file itself."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    file = chance.choice(files)
    kind = chance.randrange(40)
    if kind == 0:
        file.unlink()
        file.mkdir()
    elif kind == 1:
        file.unlink()
        os.mkfifo(file)
    elif kind == 2:
        file.unlink()
    elif kind == 3:
        file.write_bytes(b"")
    else:
        file.write_bytes(damage(file.read_bytes(), chance))


@dataclass
class Reader:
    """A format: writes a small valid file or folder below a folder and returns its path, and reads it."""

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    damage: Callable[[Path, random.Random], None] = damage_path


def peak_memory() -> int:
    """Returns the peak resident memory of this process since the last reset, in bytes."""
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0])


def run_case(reader: Reader, path: Path) -> str:
    """Reads a path; returns "read", "refused", or what is wrong."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak_memory()
    try:
        reader.read(path)
        outcome = "read"
    except PerceiversError as error:
        outcome = "refused"
        if "\n" in str(error) or len(str(error)) > 1000 or not str(error).isprintable():
            outcome = f"a message that is no printable sentence: {str(error)!r:.300}"
    except BaseException:
        outcome = traceback.format_exc()
    if (needed := peak_memory() - before) > MEMORY:
        outcome = f"needed {needed / 1e9:.1f} GB: {outcome}"
    return outcome


def run_in_child(reader: Reader, path: Path) -> str:
    """Runs a case in a child process, which is killed after `SECONDS`."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 8 * MEMORY,) * 2)
        signal.alarm(SECONDS)
        os.write(send, run_case(reader, path).encode(errors="backslashreplace")[-30000:])
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        outcome = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return f"took more than {SECONDS} s" if name == "SIGALRM" else f"was killed by {name}"
    return outcome


def fuzz(name: str, reader: Reader, cases: int, seed: int, folder: Path) -> Counter[str]:
    """Runs cases of one reader, and returns how often each outcome came about; failures are printed."""
    outcomes: Counter[str] = Counter()
    valid, work = folder / f"{name} valid", folder / "case"
    valid.mkdir()
    written = reader.write(valid).relative_to(valid)
    for case in range(cases):
        chance = random.Random(f"{name} {seed} {case}")
        shutil.copytree(valid, work)
        reader.damage(work / written, chance)
        outcome = run_in_child(reader, work / written)
        if outcome not in ("read", "refused"):
            kept = folder / f"{name} {seed} {case}".replace(" ", "-")
            shutil.rmtree(kept, ignore_errors=True)
            work.rename(kept)
            print(f"{name}, seed {seed}, case {case}, kept in {kept}: {outcome}", file=sys.stderr)
            outcomes["failed"] += 1
        else:
            shutil.rmtree(work)
            outcomes[outcome] += 1
    return outcomes


def describe(name: str, outcomes: Counter[str]) -> str:
    """Returns a line of how often each outcome came about."""
    counts = (f"{outcomes[outcome]:5} {outcome}" for outcome in ("read", "refused", "failed"))
    return f"{name:30} {' '.join(counts)}"


def main() -> None:
    """Runs cases of all readers, or of those named, and exits with 1 if one failed."""
    import torch

    from tests.robustness.readers import READERS

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cases", type=int, default=3000, help="number of cases over all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(READERS), help="names of readers")
    found = parser.parse_args()
    folder, total = Path(tempfile.mkdtemp(prefix="fuzz-")), Counter[str]()
    for name in found.only:
        outcomes = fuzz(name, READERS[name], -(-found.cases // len(found.only)), found.seed, folder)
        total += outcomes
        print(describe(name, outcomes), flush=True)
    print(describe("all", total))
    sys.exit(1 if total["failed"] else 0)


if __name__ == "__main__":
    main()
