"""Several modalities at mini scale: spoken digits, digits seen and heard, and a clip at three compressions.

What is measured goes into docs/multimodal.md.

    python benchmarks/multimodal.py --digits FOLDER --clip FILE [--only NAME ...]

FOLDER holds the free-spoken-digit data set as parquet files (audio, label, speaker), FILE is a video with sound. Runs
are kept in `runs/multimodal` and skipped when the same command is called again; what was interrupted goes on.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.side_by_side import curve, side_by_side
from perceivers.clips.autoencoding import Autoencoding
from perceivers.clips.data import ClipData, ClipDataset, LabeledClips
from perceivers.clips.metrics import ReconstructionErrors
from perceivers.clips.model import FRAME_RATE, Window, get_window
from perceivers.clips.reconstruct import autoencode, compression
from perceivers.clips.windows import read_window
from perceivers.data.image_files import to_tensor
from perceivers.data.loader import SampleIndex
from perceivers.data.video import measure, read_clip
from perceivers.data.video_writer import write_video
from perceivers.errors import PerceiversError
from perceivers.flow.pictures import to_image
from perceivers.images.data import load_digit_images
from perceivers.training.checkpoints import LAST
from perceivers.training.config import read_config

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SECONDS, RATE = 1.2, 8000
"""Length of the clips of digits seen and heard, longer than what the model sees; samples a second of the recordings."""

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


@dataclass(frozen=True)
class Run:
    """A training run: its config, what is changed in it, and whether it is of the digits seen and heard."""

    config: str
    changes: tuple[str, ...] = ()
    data: str = "digits"


RUNS = {
    "digits, mel": Run("clips/spoken_digits_mel.yaml"),
    "digits, raw": Run("clips/spoken_digits_raw.yaml"),
    **{
        f"digits, {sound}, without {name}": Run(
            f"clips/spoken_digits_{sound}.yaml", (f"--data.validation_filter={{speaker: {name}}}",)
        )
        for sound in ("mel", "raw")
        for name in SPEAKERS
    },
    "seen and heard": Run("clips/audio_visual_digits.yaml", data="both"),
    "heard": Run("clips/audio_visual_digits.yaml", ("--model.frames=null",), "both"),
    "seen": Run("clips/audio_visual_digits.yaml", ("--model.sound=null",), "both"),
    "clip, 40 latents": Run("autoencoding/mini.yaml", data="clip"),
    "clip, 20 latents": Run("autoencoding/mini.yaml", ("--model.latents=20",), "clip"),
    "clip, 10 latents": Run("autoencoding/mini.yaml", ("--model.latents=10",), "clip"),
}

START, END = "<!-- measured by benchmarks/multimodal.py -->\n", "<!-- end -->\n"


def folder(runs: Path, name: str) -> Path:
    """Where a run is kept."""
    return runs / name.replace(", ", "_").replace(" ", "_")


def train(name: str, runs: Path, data: Path) -> None:
    """Trains a run, or goes on with it."""
    run, output = RUNS[name], folder(runs, name)
    resume = str((output / "checkpoints" / LAST).is_file()).lower()
    own = [f"--data.path={data}", f"--training.output={output}", f"--training.resume={resume}"]
    read_config(CONFIGS / run.config, [*run.changes, *own]).run()


def write_digits(spoken: Path, out: Path) -> None:
    """Clips of digits seen and heard: a recording, and a handwritten digit of the same class from scikit-learn.

    Of each three clips, on average, one has noise for a picture and one is silent; nothing tells which. Recordings and
    pictures that are evaluated on are not among those of training.
    """
    generator = torch.Generator().manual_seed(0)
    sounds, images = ClipData(str(spoken)).open(), load_digit_images()
    for split, clips, pictures in (
        ("train", sounds.training, images.training),
        ("val", sounds.evaluation, images.evaluation),
    ):
        for index, (label, sound) in enumerate(recordings(clips)):
            same = [place for place in range(len(pictures)) if pictures.labels[place] == label]
            chosen = same[int(torch.randint(len(same), (), generator=generator))]
            picture_CYX = to_tensor(pictures.read(chosen, 3)).repeat_interleave(2, 1).repeat_interleave(2, 2)
            kind = int(torch.randint(3, (), generator=generator))
            if kind == 1:
                picture_CYX = torch.randint(256, picture_CYX.shape, generator=generator, dtype=torch.uint8)
            heard_S = torch.zeros(round(SECONDS * RATE))
            if kind != 2:
                begin = int(torch.randint(max(1, len(heard_S) - len(sound) + 1), (), generator=generator))
                heard_S[begin : begin + len(sound)] = sound[: len(heard_S)]
            path = out / split / str(label)
            path.mkdir(parents=True, exist_ok=True)
            write_video(path / f"{index}.mkv", [picture_CYX] * round(25 * SECONDS), 25, heard_S, RATE)
    (out / "done").touch()


def recordings(clips: LabeledClips) -> Iterator[tuple[int, Tensor]]:
    """Class and samples of each recording."""
    for index in range(len(clips)):
        seen = read_window(clips.media(index), Window(samples=round(SECONDS * RATE), sample_rate=RATE), 0.0)
        assert seen.audio is not None
        assert seen.audio_mask is not None
        yield clips.labels[index], seen.audio[seen.audio_mask]


def accuracy(runs: Path, names: list[str]) -> str:
    """Accuracies of runs, as a table."""
    rows = ["| run | test accuracy | epochs | minutes | parameters |", "| --- |" + " --- |" * 4]
    for name in names:
        found, config = read(folder(runs, name))
        rows.append(
            f"| {name} | {found['val_top1']:.1%} | {config['trainer']['max_epochs']} | {found['seconds'] / 60:.0f} | "
            f"{found['parameters'] / 1e6:.2f}M |"
        )
    return "\n".join(rows)


def read(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and config of a run."""
    found, config = (json.loads((run / file).read_text()) for file in ("metrics.json", "config.json"))
    return found, config


def trade_off(runs: Path, names: list[str], clip: Path) -> str:
    """Errors at each compression, and without any model, as a table; and their plot."""
    rows = ["| compression | latents | video PSNR | audio PSNR | minutes |", "| --- |" + " --- |" * 4]
    points = []
    for name in names:
        found, _ = read(folder(runs, name))
        model = read_config(folder(runs, name) / "config.json").build_on_meta()
        points.append((compression(model), found["val_video_psnr"], found["val_audio_psnr"]))
        rows.append(
            f"| {points[-1][0]:.0f}x | {model.config['latents']} x {model.config['channels']} | "
            f"{points[-1][1]:.2f} | {points[-1][2]:.2f} | {found['seconds'] / 60:.0f} |"
        )
    video, audio = without_model(clip)
    rows.append(f"| mean frame of the training windows, silence | | {video:.2f} | {audio:.2f} | |")
    draw(points, (video, audio), ROOT / "docs/autoencoding_mini.png")
    return "\n".join(rows)


def windows(clip: Path, *changes: str) -> tuple[ClipDataset, ClipDataset]:
    """Those of the clip that are trained on and those that are held out; `changes` are of the config."""
    config = read_config(CONFIGS / "autoencoding/mini.yaml", [f"--data.path={clip}", *changes])
    assert isinstance(config, Autoencoding)
    return config.data.datasets(config.data.open(labeled=False), get_window(config.build_on_meta()))


def drawn_per_second(clip: Path, *changes: str, count: int = 40) -> float:
    """Windows of training that one process reads in a second, after it has read as many."""
    training, _ = windows(clip, *changes)
    for round in range(2):
        started = time.perf_counter()
        for seed in range(count):
            training[SampleIndex(0, count * round + seed)]
    return count / (time.perf_counter() - started)


def keeps_up(runs: Path, names: list[str], clip: Path) -> str:
    """Windows that are read in a second, and those that training takes, as a table."""
    rows = ["| windows of 16 frames with sound | a second |", "| --- | --- |"]
    rows.append(f"| read from the file, by one process | {drawn_per_second(clip, '--data.cache_gb=0'):.1f} |")
    rows.append(f"| read with the decoded clip in memory, as in mini.yaml | {drawn_per_second(clip):.0f} |")
    for name in names:
        speed = statistics.median(value for _, value in curve(folder(runs, name), "examples_per_second"))
        rows.append(f"| trained on: {name} | {speed:.0f} |")
    return "\n".join(rows)


def without_model(clip: Path) -> tuple[float, float]:
    """PSNR of the held-out windows if each frame is the mean of the training windows', and the sound silence."""
    training, held_out = windows(clip)
    drawn = training.collate([training[SampleIndex(0, seed)] for seed in range(200)])
    batch = held_out.collate([held_out[SampleIndex(number, 0)] for number in range(len(held_out))])
    mean_CYX = drawn["video"][drawn["video_mask"]].float().mean(0) / 255
    errors = ReconstructionErrors(["video", "audio"])
    errors.update({"video": mean_CYX.expand(batch["video"].shape), "audio": torch.zeros_like(batch["audio"])}, batch)
    found = errors.compute()
    return float(found["video_psnr"]), float(found["audio_psnr"])


def draw(points: list[tuple[float, float, float]], none: tuple[float, float], file: Path) -> None:
    """PSNR by compression, with that of no model."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    for axis, name, place in zip(figure.subplots(1, 2), ("video", "sound"), (1, 2), strict=True):
        axis.plot([point[0] for point in points], [point[place] for point in points], "o-")
        axis.axhline(none[place - 1], color="black", linewidth=0.8, linestyle=":")
        values = [none[place - 1], *(point[place] for point in points)]
        axis.set_ylim(min(values) - 1, max(values) + 1)  # what differs by nothing shall look so
        axis.set(xlabel="compression", ylabel=f"PSNR of the {name}, dB", xscale="log")
        axis.set_xticks([point[0] for point in points], [f"{point[0]:.0f}x" for point in points], minor=False)
        axis.minorticks_off()
    figure.savefig(file, dpi=110)


def reconstruct(runs: Path, names: list[str], clip: Path) -> None:
    """A held-out window and what models of each compression make of it: a video, and some of its frames."""
    _, held_out = windows(clip)
    assert held_out.positions is not None
    length = measure(clip, read_video=True, read_audio=True).duration - held_out.window.seconds
    start = float(length) * held_out.positions[len(held_out.positions) // 2]
    decoded: list[Tensor] = []
    for name in reversed(names):  # so that the video that stays is the first model's
        result = autoencode(folder(runs, name) / "model", clip, ROOT / "docs/autoencoding_mini.mp4", start)
        decoded.insert(0, result.video)
    size = decoded[0].shape[-1]
    video_TCYX = read_clip(clip, start, len(decoded[0]), FRAME_RATE, size).video / 255
    strips = [torch.cat(list(each[::4]), -1) for each in (video_TCYX, *decoded)]
    picture = to_image((255 * torch.cat(strips, 1)).round().byte())
    picture.resize((3 * picture.width, 3 * picture.height)).save(ROOT / "docs/autoencoding_mini_frames.png")


def main() -> None:
    """Runs what is not done yet and writes the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--digits", type=Path, required=True, help="the spoken digits")
    parser.add_argument("--clip", type=Path, required=True, help="the video that is autoencoded")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/multimodal", help="where runs are kept")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), metavar="NAME", help=f"of {', '.join(RUNS)}")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (1)")
    parser.add_argument("--here", action="store_true", help="train in this process, and write no document")
    arguments = parser.parse_args()
    both = arguments.runs / "seen_and_heard_clips"
    names = arguments.only or list(RUNS)
    data = {"digits": arguments.digits, "clip": arguments.clip, "both": both}
    try:
        arguments.runs.mkdir(parents=True, exist_ok=True)
        if any(RUNS[name].data == "both" for name in names) and not (both / "done").exists():
            write_digits(arguments.digits, both)
        if arguments.here:
            for name in names:
                train(name, arguments.runs, data[RUNS[name].data])
            return
        missing = [name for name in names if not (folder(arguments.runs, name) / "metrics.json").is_file()]
        own = [sys.executable, __file__, "--digits", str(arguments.digits), "--clip", str(arguments.clip), "--here"]
        own += ["--runs", str(arguments.runs), "--only"]
        failed = side_by_side({name: [*own, name] for name in missing}, arguments.runs, arguments.jobs)
        if failed:
            sys.exit(
                f"multimodal.py: not finished: {', '.join(failed)}; see the ends of their logs in {arguments.runs}."
            )
        report(arguments.runs, arguments.clip)
    except PerceiversError as error:
        sys.exit(f"multimodal.py: {error}")


def report(runs: Path, clip: Path) -> None:
    """Writes what is done so far into the document."""
    done = [name for name in RUNS if (folder(runs, name) / "metrics.json").is_file()]
    coded = [name for name in done if RUNS[name].data == "clip"]
    parts = []
    for title, data in (("Spoken digits:", "digits"), ("Digits seen and heard:", "both")):
        names = [name for name in done if RUNS[name].data == data]
        if names:
            parts.append(f"{title}\n\n{accuracy(runs, names)}\n")
    if coded:
        parts.append(f"A clip at several compressions:\n\n{trade_off(runs, coded, clip)}\n")
        parts.append(f"Reading beside training:\n\n{keeps_up(runs, coded, clip)}\n")
        reconstruct(runs, coded, clip)
    page = ROOT / "docs/multimodal.md"
    before, _, rest = page.read_text().partition(START)
    page.write_text(before + START + "\n".join(parts) + END + rest.partition(END)[2])
    print("\n" + "\n".join(parts))


if __name__ == "__main__":
    main()
