"""What each command does: it calls the library with the command's arguments and prints what it returns."""

import argparse
import ast
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import perceivers
from perceivers.errors import PerceiversError

if TYPE_CHECKING:
    from perceivers.flow.evaluation import FlowScore


def list_models(arguments: argparse.Namespace) -> None:
    from perceivers.presets import PRESETS, create_model, measure

    models = [
        (name, preset, measure(partial(create_model, name), preset.inputs, preset.outputs))
        for name, preset in PRESETS.items()
    ]
    if arguments.json:
        rows = [
            {
                "name": name,
                "experiment": preset.experiment,
                "paper_row": preset.row,
                "parameters": size.parameters,
                "paper_parameters": preset.paper_parameters and int(preset.paper_parameters),
                "flops": size.flops,
                "paper_flops": preset.paper_flops and int(preset.paper_flops),
            }
            for name, preset, size in models
        ]
        print(json.dumps(rows, indent=2))
        return
    print_table(
        ["name", "experiment", "in the paper", "parameters", "paper", "FLOPs", "paper"],
        [
            [
                name,
                preset.experiment,
                preset.row,
                f"{size.parameters / 1e6:.1f}M",
                f"{preset.paper_parameters / 1e6:.1f}M" if preset.paper_parameters else "-",
                f"{size.flops / 1e9:.0f}B",
                f"{preset.paper_flops / 1e9:.0f}B" if preset.paper_flops else "-",
            ]
            for name, preset, size in models
        ],
    )
    print("\nFLOPs of one forward pass of one example. docs/ says where and why figures differ.")


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Prints columns side by side, numbers to the right."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        cells = [
            cell.rjust(width) if any(r[column][:1].isdigit() for r in table[1:]) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def fit_config(arguments: argparse.Namespace) -> None:
    from perceivers.training.config import describe, read_config

    if arguments.config is None:
        print(
            "usage: perceivers fit CONFIG [--any.field=value ...]\n\n"
            "CONFIG is a file such as those in configs/; with --help, every field of its experiment is described."
        )
        if not arguments.teach:
            raise PerceiversError("fit needs a config file, such as configs/image_classification/digits.yaml.")
    elif arguments.teach:
        print(describe(Path(arguments.config)))
    else:
        from lightning.pytorch.utilities import rank_zero_only

        run = read_config(Path(arguments.config), arguments.overrides).run()
        where = f"model is in {run / 'model'}" if (run / "model").is_dir() else f"models are below {run}"
        rank_zero_only(print)(f"\nTrained. The {where}, the figures in {run / 'metrics.json'}.")


def fill_masks(arguments: argparse.Namespace) -> None:
    from perceivers.text.fill_mask import fill_mask

    filled = fill_mask(arguments.model, read_text(arguments), arguments.top, arguments.device, arguments.dtype)
    if arguments.json:
        print(json.dumps(asdict(filled), indent=2))
        return
    print(filled.text)
    for place, candidates in zip(filled.masked, filled.candidates, strict=True):
        best = "  ".join(f"'{byte}' {probability:.1%}" for byte, probability in candidates.items())
        print(f"  byte {place}: {best}")


def read_text(arguments: argparse.Namespace) -> str:
    """A command's text, from the command line, a file or standard input."""
    if (arguments.file is None) == (arguments.text is None):
        raise PerceiversError(
            f"{arguments.command} needs one text: as an argument, with --file, or '-' for standard input."
        )
    if arguments.text is not None and arguments.text != "-":
        return arguments.text
    try:
        content = sys.stdin.buffer.read() if arguments.file is None else Path(arguments.file).read_bytes()
        return content.decode().removesuffix("\n")  # the last line's end, which editors and shells add
    except (OSError, UnicodeDecodeError) as error:
        raise PerceiversError(f"{arguments.file or 'standard input'} cannot be read as text ({error}).") from error


def classify_texts(arguments: argparse.Namespace) -> None:
    from perceivers.text.classify import SCORE, classify_text

    texts = read_texts(arguments)
    answers = classify_text(arguments.model, texts, arguments.task, arguments.device, arguments.dtype)
    top: list[dict[str, Any]] = [
        {"text": text} | (answer if SCORE in answer else {"classes": dict(list(answer.items())[: arguments.top])})
        for text, answer in zip(texts, answers, strict=True)
    ]
    if arguments.json:
        print(json.dumps(top, indent=2))
        return
    for answer in top:
        print(answer["text"] if isinstance(answer["text"], str) else "\n".join(answer["text"]))
        if SCORE in answer:
            print(f"  {answer[SCORE]:.4f}")
        else:
            print_classes(answer["classes"])


def read_texts(arguments: argparse.Namespace) -> list[str | tuple[str, str]]:
    """The text of classify-text, the pair, or the lines of a file or of standard input."""
    if arguments.second is not None:
        if arguments.file is not None or arguments.text == "-":
            raise PerceiversError("a pair of texts is given as two arguments, without --file and '-'.")
        return [(arguments.text, arguments.second)]
    content = read_text(arguments)
    if arguments.file is None and arguments.text != "-":
        return [content]
    return [line.removesuffix("\r") for line in content.split("\n")]


def draw_attention(arguments: argparse.Namespace) -> None:
    from perceivers.text.attention_page import attention_page

    latents = attention_page(
        arguments.model,
        read_text(arguments),
        arguments.out,
        arguments.latents,
        arguments.heads,
        arguments.task,
        arguments.device,
        arguments.dtype,
    )
    print(f"{arguments.out}: what latents {', '.join(map(str, latents))} read of the text.")


def classify_images(arguments: argparse.Namespace) -> None:
    from perceivers.images.classify import classify_image

    classes = None if arguments.classes is None else read_lines(Path(arguments.classes))
    answers = classify_image(arguments.model, arguments.files, classes, arguments.device, arguments.dtype)
    print_answers(arguments, answers)


def classify_clips(arguments: argparse.Namespace) -> None:
    from perceivers.clips.classify import classify_clip

    answers = classify_clip(arguments.model, arguments.files, arguments.windows, arguments.device, arguments.dtype)
    print_answers(arguments, answers)


def print_answers(arguments: argparse.Namespace, answers: list[dict[str, float]]) -> None:
    """Prints the most probable classes of each file."""
    top: list[dict[str, Any]] = [
        {"file": file, "classes": dict(list(answer.items())[: arguments.top])}
        for file, answer in zip(arguments.files, answers, strict=True)
    ]
    if arguments.json:
        print(json.dumps(top, indent=2))
        return
    for answer in top:
        print(answer["file"])
        print_classes(answer["classes"])


def read_lines(path: Path) -> list[str]:
    """The lines of a file."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PerceiversError(f"{path} cannot be read as lines of text ({error}).") from error


def print_classes(classes: dict[str, float]) -> None:
    """Prints classes with their probabilities."""
    for name, probability in classes.items():
        print(f"  {probability:7.2%}  {name}")


def compute_flow(arguments: argparse.Namespace) -> None:
    from perceivers.flow.estimate import flow, flow_video
    from perceivers.flow.files import check_flow_path, write_flow
    from perceivers.flow.pictures import check_largest, check_picture_path, write_picture
    from perceivers.inference import check_folder

    outputs = [path for path in (arguments.out, arguments.picture) if path is not None]
    for path in outputs:
        check_folder(path)
    shared = {name: getattr(arguments, name) for name in ("overlap", "batch_size", "device", "dtype")}
    model, frames = split_model(arguments.files)
    if len(frames) == 1:
        if arguments.picture is not None:
            raise PerceiversError("--picture is for two frames: the flow of a video is drawn to --out.")
        (video,) = frames
        pairs = flow_video(model, video, arguments.out, largest=arguments.largest, progress=True, **shared)
        print(f"{arguments.out}: the flow of {pairs} pairs of frames, in colours.")
        return
    if len(frames) != 2:
        raise PerceiversError(f"flow needs two frames or one video, but {len(frames)} files were given.")
    check_flow_path(arguments.out)
    if arguments.picture is not None:
        check_picture_path(arguments.picture)
    check_largest(arguments.largest)
    frame1, frame2 = frames
    flow_2YX = flow(model, frame1, frame2, progress=True, **shared)
    write_flow(arguments.out, flow_2YX)
    if arguments.picture is not None:
        write_picture(arguments.picture, flow_2YX, largest=arguments.largest)
    lengths = flow_2YX.norm(dim=0)
    print(
        f"{' and '.join(outputs)}: flow of {flow_2YX.shape[2]} x {flow_2YX.shape[1]} pixels, "
        f"{lengths.mean():.2f} pixels long on average, {lengths.max():.2f} at most."
    )


def split_model(files: list[str]) -> tuple[str | Path, list[str]]:
    """The model and the frames, or the video, that flow is given; without a model, the one of the package."""
    from perceivers.flow.estimate import SHIPPED
    from perceivers.images.data import SUFFIXES

    if len(files) == 1 or (len(files) == 2 and all(Path(file).suffix.lower() in SUFFIXES for file in files)):
        return SHIPPED, files
    return files[0], files[1:]


def make_flow_data(arguments: argparse.Namespace) -> None:
    from perceivers.flow.generator import write_scenes
    from perceivers.flow.scenes import Scenes

    fields = ("textures", "motion", "tail", "blur", "fog", "lighting", "seed")
    scenes = Scenes(tuple(arguments.size), **{field: getattr(arguments, field) for field in fields})
    write_scenes(scenes, arguments.out, arguments.pairs)
    print(f"{arguments.out}: {arguments.pairs} pairs of {scenes.size[1]} x {scenes.size[0]} pixels with their flow.")


def prepare_replays(arguments: argparse.Namespace) -> None:
    from perceivers.starcraft.tables import write_replays

    statistics = write_replays(Path(arguments.source), Path(arguments.out), arguments.team_games, progress=True)
    for reason in statistics["refused"].values():
        print(f"Refused: {reason}")
    replays = statistics["replays"].values()
    total = {
        name: sum(each[name] for each in replays) for name in ("decisions", "selections", "cut", "unknown_abilities")
    }
    print(
        f"{arguments.out}: {total['decisions']:,} decisions of {len(replays)} replays, {total['selections']:,} of them "
        f"selections. Units were left out of {total['cut']:,}, of which there are too many; "
        f"{total['unknown_abilities']:,} are of abilities that sc2reader does not know."
    )


def autoencode_clip(arguments: argparse.Namespace) -> None:
    from perceivers.clips.reconstruct import autoencode

    result = autoencode(
        arguments.model,
        arguments.clip,
        arguments.out,
        arguments.start,
        arguments.device,
        arguments.dtype,
        progress=True,
    )
    classes = dict(list(result.classes.items())[: arguments.top])
    if arguments.json:
        figures = {"video_psnr": result.video_psnr, "audio_psnr": result.audio_psnr, "classes": classes}
        print(json.dumps({"out": arguments.out} | figures, indent=2))
        return
    sound = "no sound" if result.audio_psnr is None else f"sound {result.audio_psnr:.2f} dB"
    print(f"{arguments.out}: PSNR of the video {result.video_psnr:.2f} dB, {sound}.")
    print_classes(classes)


def evaluate_model(arguments: argparse.Namespace) -> None:
    from torch import nn

    from perceivers.adapters import FlowOutput, ImageInput, LabelOutput, VideoOutput
    from perceivers.checkpoints.load import holds
    from perceivers.extras import need
    from perceivers.inference import prepare

    for extra in ("train", "vision"):  # what is missing shows before the model is loaded
        need(extra)
    if holds(arguments.model, "UnitPolicy"):
        refuse(arguments, ("picture", "overlap"), "of optical flow", "decides for units")
        refuse(arguments, ("windows", "classes"), "of clips", "decides for units")
        evaluate_policy(arguments)
        return
    model = prepare(arguments.model, arguments.device, arguments.dtype)

    def has(parts: nn.ModuleDict, *kinds: type[nn.Module]) -> bool:
        return any(isinstance(part, kinds) for part in parts.values())

    flow_options, clip_options = ("split", "picture", "overlap"), ("windows", "list", "classes")
    if has(model.outputs, FlowOutput):
        refuse(arguments, clip_options, "of clips", "estimates flow")
        evaluate_flow(arguments, model)
    elif has(model.inputs, ImageInput) and has(model.outputs, LabelOutput):
        refuse(arguments, flow_options, "of optical flow", "classifies images")
        refuse(arguments, clip_options, "of clips", "classifies images")
        evaluate_images(arguments, model)
    elif has(model.outputs, LabelOutput, VideoOutput) and set(model.inputs) & {"video", "audio"}:
        refuse(arguments, flow_options, "of optical flow", "reads clips")
        evaluate_clips(arguments, model, has(model.outputs, VideoOutput))
    else:
        raise PerceiversError(
            f"{arguments.model} reads {', '.join(model.inputs)} and predicts {', '.join(model.outputs)}: "
            "only classifiers of images and clips, autoencoders and models of optical flow can be evaluated."
        )


def refuse(arguments: argparse.Namespace, options: tuple[str, ...], kind: str, does: str) -> None:
    """Raises a PerceiversError for an option of `evaluate` that is for other models."""
    for option in options:
        if getattr(arguments, option) is not None:
            raise PerceiversError(f"--{option} is for models {kind}, but {arguments.model} {does}: leave it out.")


def evaluate_clips(arguments: argparse.Namespace, model: perceivers.PerceiverIO, decodes: bool) -> None:
    from perceivers.clips import autoencoding, classification
    from perceivers.clips.data import ClipData, clips_below, listed_clips
    from perceivers.clips.lists import read_classes
    from perceivers.images.classify import class_names

    path, windows = Path(arguments.data), arguments.windows or 1
    if arguments.classes is not None and arguments.list is None:
        raise PerceiversError("--classes tells what the classes of a --list are: give both, or neither.")
    if "label" not in model.outputs:
        clips = clips_below(path)
    elif arguments.list is not None:
        own = {name: name for name in class_names(model)}
        classes = own if arguments.classes is None else read_classes(Path(arguments.classes))
        clips = listed_clips(Path(arguments.list), path, classes, skip_missing=False)
    else:
        clips = ClipData(arguments.data).open().evaluation
    if decodes:
        results = autoencoding.evaluate(model, clips, windows, arguments.batch_size or 1)
    else:
        results = classification.evaluate(model, clips, windows, arguments.batch_size or 16)
    if arguments.json:
        print(json.dumps(results | {"clips": len(clips), "windows": windows}, indent=2))
        return
    units = {
        "video_psnr": "PSNR of the video {:.2f} dB",
        "audio_psnr": "of the sound {:.2f} dB",
        "top1": "top-1 {:.2%}",
        "map": "mean average precision {:.2%}",
        "d_prime": "d-prime {:.3f}",
    }
    figures = ", ".join(units[name].format(value) for name, value in results.items())
    few = "1 window" if windows == 1 else f"{windows} windows"
    print(f"{len(clips)} clip{'s' if len(clips) > 1 else ''}, {few} of each: {figures}")


def evaluate_policy(arguments: argparse.Namespace) -> None:
    from perceivers.checkpoints import load_any
    from perceivers.starcraft.data import PARTS, DecisionData
    from perceivers.starcraft.policy import UnitPolicy
    from perceivers.starcraft.training import evaluate, references

    part = arguments.split or "test"
    if part not in PARTS:
        raise PerceiversError(f"--split {part} is not allowed: it is {', '.join(PARTS)}.")
    data = DecisionData(arguments.data) if arguments.list is None else DecisionData(arguments.data, arguments.list)
    decisions, policy = data.open()[part], load_any(arguments.model)
    assert isinstance(policy, UnitPolicy)
    policy.to(arguments.device or "cpu")
    results = {"model": evaluate(policy, decisions, arguments.batch_size or 64)} | references(decisions)
    if arguments.json:
        print(json.dumps(results | {"decisions": len(decisions)}, indent=2))
        return
    columns = list(results["model"])
    print_table(
        [f"{part}, {len(decisions):,} decisions", *columns],
        [[name, *(f"{row[key]:.2%}" if key in row else "" for key in columns)] for name, row in results.items()],
    )


def evaluate_images(arguments: argparse.Namespace, model: perceivers.PerceiverIO) -> None:
    from perceivers.images.data import ImageData
    from perceivers.images.training import evaluate

    results = evaluate(model, ImageData(arguments.data).open().evaluation, arguments.batch_size or 64)
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        accuracy = f"top-1 {results['top1']:.2%}, top-5 {results['top5']:.2%}"
        print(f"{results['images']} images kept for evaluation: {accuracy}, loss {results['loss']:.4f}")


def evaluate_flow(arguments: argparse.Namespace, model: perceivers.PerceiverIO) -> None:
    from perceivers.flow.datasets import open_all
    from perceivers.flow.estimate import OVERLAP
    from perceivers.flow.evaluation import evaluate

    if arguments.picture is not None and Path(arguments.picture).is_file():
        raise PerceiversError(f"--picture {arguments.picture} is a file: give a folder, new or not.")
    overlap = OVERLAP if arguments.overlap is None else arguments.overlap
    results = {}
    for pairs in open_all(arguments.data, arguments.split or "training"):
        scores = evaluate(model, pairs, overlap, arguments.batch_size or 1, arguments.picture, progress=True)
        results[pairs.layout] = {name: asdict(score) for name, score in scores.items()}
        if not arguments.json:
            print_scores(f"{pairs.layout}, {len(pairs)} pair{'s' if len(pairs) > 1 else ''}", scores)
    if arguments.json:
        print(json.dumps(results, indent=2))


def print_scores(title: str, scores: Mapping[str, "FlowScore"]) -> None:
    """Prints the errors of flow of each method on a data set, then of each sequence."""
    (first, *_) = scores.values()
    regions = [region for region in ("visible", "occluded") if f"epe_{region}" in first.errors]
    print_table(
        [title, "EPE", ">1px", ">3px", ">5px", "Fl-all", *(f"EPE {region}" for region in regions), "seconds a pair"],
        [
            [
                name,
                f"{score.errors['epe']:.2f}",
                *(f"{score.errors[part]:.2%}" for part in ("over1px", "over3px", "over5px", "fl_all")),
                *(f"{score.errors[f'epe_{region}']:.2f}" for region in regions),
                f"{score.seconds:.3f}",
            ]
            for name, score in scores.items()
        ],
    )
    print()
    if len(first.sequences) > 1:
        print_table(
            ["EPE of each sequence", *scores],
            [
                [sequence, *(f"{score.sequences[sequence]:.2f}" for score in scores.values())]
                for sequence in first.sequences
            ],
        )
        print()


def train_words(arguments: argparse.Namespace) -> None:
    from perceivers.inference import check_folder
    from perceivers.text.stream import TextData
    from perceivers.text.tokenizers import SentencePiece, bytes_per_token, train_tokenizer

    check_folder(arguments.out)
    data, out = TextData(path=arguments.data, leave_out=arguments.leave_out), Path(arguments.out)
    train_tokenizer(data.documents_once(), out, arguments.vocabulary)
    tokenizer = SentencePiece(out)
    average = bytes_per_token(tokenizer, islice(data.documents_once(), 1000))
    print(f"{out}: {tokenizer.size} tokens of {average:.2f} bytes of text on average, white space not counted.")


def convert_model(arguments: argparse.Namespace) -> None:
    from perceivers.released.export import to_transformers

    settings = {}
    for setting in arguments.set:
        name, equals, value = setting.partition("=")
        if not equals:
            raise PerceiversError(f"--set {setting} is not allowed: write NAME=VALUE, such as --set heads=8.")
        if name in ("source", "classes"):  # other arguments of `load`
            raise PerceiversError(f"--set {setting} is not allowed: {name} is nothing that a file does not tell.")
        settings[name] = parse(value)
    target = Path(arguments.target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PerceiversError(f"{target} exists already: choose a new folder.")
    model = perceivers.load(arguments.source, **settings)
    if arguments.to == "transformers":
        to_transformers(model, target)
    else:
        model.save(target)
    print(f"{target} holds the model in the format of {arguments.to}.")


def parse(value: str) -> Any:
    """A value as JSON or Python writes it; any other is text."""
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, TypeError):
            return read(value)
    return value


def run_demo(arguments: argparse.Namespace) -> None:
    from perceivers.images.demo import demo

    demo(Path(arguments.output), arguments.epochs)
