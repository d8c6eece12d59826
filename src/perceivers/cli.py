"""The command `perceivers`: reads arguments, calls the library, prints what it returns."""

import argparse
import ast
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import perceivers
from perceivers.model.errors import PerceiversError

EXAMPLES = """\
examples:
  perceivers demo                                     train on handwritten digits, in minutes
  perceivers models                                   the paper's models, with parameters and FLOPs
  perceivers fit configs/image_classification/digits.yaml --training.epochs=5
  perceivers fit CONFIG --help                        every field of that experiment's config
  perceivers evaluate runs/demo/model --data digits
  perceivers classify-image runs/demo/model picture.png
  perceivers fill-mask MODEL "This is an incomplete sentence where some words are[MASK*9]"
  perceivers classify-text MODEL "A film to see twice."
  perceivers attention MODEL "A film to see twice." --out attention.html
  perceivers flow MODEL frame1.png frame2.png --out flow.flo --picture flow.png
  perceivers autoencode MODEL clip.mp4 --out reconstruction.mp4
  perceivers train-tokenizer texts/ --out words.model --vocabulary 32000
  perceivers convert language_perceiver_io_bytes.pickle language --to transformers
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        "perceivers", description=perceivers.__doc__, epilog=EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--version", action="version", version=perceivers.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    models = commands.add_parser("models", help="list the paper's models, measured, beside the paper's figures")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.set_defaults(run=list_models)

    fit = commands.add_parser("fit", help="train as a config file says", add_help=False)
    fit.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML or JSON file, see configs/")
    fit.add_argument("-h", "--help", action="store_true", dest="teach")
    fit.set_defaults(run=fit_config)

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("model", metavar="MODEL", help="a saved model, in any format (see docs/checkpoints.md)")
    common.add_argument("--device", help="where to compute, such as cuda:1; the accelerator if there is one")
    common.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="as saved, if not given")
    printed = argparse.ArgumentParser(add_help=False)
    printed.add_argument("--json", action="store_true", help="print JSON")

    fill = commands.add_parser("fill-mask", help="fill in masked bytes of a text", parents=[common, printed])
    fill.add_argument(
        "text", metavar="TEXT", nargs="?", help="with [MASK] for a byte, [MASK*9] for nine; '-' reads standard input"
    )
    fill.add_argument("--file", help="read the text from a file instead")
    fill.add_argument("--top", type=int, default=5, help="how many candidates to print for each byte (5)")
    fill.set_defaults(run=fill_masks)

    label = commands.add_parser("classify-text", help="say of which class texts are", parents=[common, printed])
    label.add_argument("text", metavar="TEXT", nargs="?", help="'-' reads standard input, one text a line")
    label.add_argument("second", metavar="TEXT2", nargs="?", help="the other text of a pair")
    label.add_argument("--file", help="read texts from a file instead, one a line")
    label.add_argument("--task", help="which of the model's tasks, if it has several")
    label.add_argument("--top", type=positive, default=5, help="how many classes to print for each text (5)")
    label.set_defaults(run=classify_texts)

    attention = commands.add_parser("attention", help="draw what latents read of a text", parents=[common])
    attention.add_argument(
        "text", metavar="TEXT", nargs="?", help="[MASK] masks a token, [MASK*9] nine; '-' reads standard input"
    )
    attention.add_argument("--file", help="read the text from a file instead")
    attention.add_argument("--out", required=True, help="the page to write, such as attention.html")
    attention.add_argument("--latents", type=int, nargs="+", help="which latents; up to six that differ, if not given")
    attention.add_argument("--heads", action="store_true", help="also draw each head of the attention")
    attention.add_argument("--task", help="which task the model is to do, if it reads texts differently for each")
    attention.set_defaults(run=draw_attention)

    classify = commands.add_parser("classify-image", help="say what is in image files", parents=[common, printed])
    classify.add_argument("files", metavar="FILE", nargs="+")
    classify.add_argument("--classes", metavar="FILE", help="names of the classes, one a line, in order")
    classify.add_argument("--top", type=positive, default=5, help="how many classes to print for each file (5)")
    classify.set_defaults(run=classify_images)

    flow = commands.add_parser("flow", help="optical flow of two frames, or of a video", parents=[common])
    flow.add_argument("frames", metavar="FRAME", nargs="+", help="two image files of the same size, or one video")
    flow.add_argument("--out", required=True, help=".flo, .png (KITTI), .npy for two frames; .mp4 for a video")
    flow.add_argument("--picture", help="also draw the flow of two frames in colours, to this file")
    flow.add_argument("--largest", type=float, help="pixels of flow that have full colour; the longest, if not given")
    flow.add_argument("--overlap", type=int, default=20, help="fewest pixels by which tiles overlap (20)")
    flow.add_argument("--batch-size", type=int, default=1, help="tiles computed at a time (1)")
    flow.set_defaults(run=compute_flow)

    code = commands.add_parser(
        "autoencode", help="a clip with sound through the latents and back", parents=[common, printed]
    )
    code.add_argument("clip", metavar="CLIP", help="a video file")
    code.add_argument("--out", required=True, help="the video to write, original beside reconstruction")
    code.add_argument("--start", type=float, default=0.0, help="seconds into the file (0)")
    code.add_argument("--top", type=positive, default=5, help="how many classes to print (5)")
    code.set_defaults(run=autoencode_clip)

    evaluate = commands.add_parser(
        "evaluate", help="measure a saved image classifier on labelled images", parents=[common, printed]
    )
    evaluate.add_argument(
        "--data",
        required=True,
        help="'digits', a folder, or a data set of the hub; measured on its evaluation split, or held-out part",
    )
    evaluate.add_argument("--batch-size", type=positive, default=64)
    evaluate.set_defaults(run=evaluate_images)

    words = commands.add_parser("train-tokenizer", help="make a vocabulary of pieces of words from text")
    words.add_argument("data", metavar="DATA", help="text, as in data.path of a pretraining run")
    words.add_argument("--leave-out", nargs="+", default=[], metavar="PATTERN", help="names of text files not to read")
    words.add_argument("--out", required=True, help="the SentencePiece model to write, such as words.model")
    words.add_argument("--vocabulary", type=positive, default=32000, help="number of tokens (32000)")
    words.set_defaults(run=train_words)

    convert = commands.add_parser("convert", help="write a model in another format")
    convert.add_argument("source", metavar="SRC", help="a saved model, in any format")
    convert.add_argument("target", metavar="DST", help="the folder to write")
    convert.add_argument("--to", required=True, choices=["perceivers", "transformers"])
    convert.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting that the source does not tell"
    )
    convert.set_defaults(run=convert_model)

    demo = commands.add_parser("demo", help="train a small Perceiver IO on handwritten digits and show what it does")
    demo.add_argument("--output", default="runs/demo", help="folder to write to (runs/demo)")
    demo.add_argument("--epochs", type=int, default=None, help="passes over the training digits")
    demo.set_defaults(run=run_demo)
    return parser


def positive(text: str) -> int:
    """An argument that is at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not allowed: it must be at least 1")
    return number


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
                "paper_parameters": int(preset.paper_parameters),
                "flops": size.flops,
                "paper_flops": int(preset.paper_flops),
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
                f"{preset.paper_parameters / 1e6:.1f}M",
                f"{size.flops / 1e9:.0f}B",
                f"{preset.paper_flops / 1e9:.0f}B",
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
    from perceivers.experiments.configuration import describe, read_config

    if arguments.config is None:
        print("usage: perceivers fit CONFIG [--any.field=value ...]\n\n" + EXAMPLES)
        if not arguments.teach:
            raise PerceiversError("fit needs a config file, such as configs/image_classification/digits.yaml.")
    elif arguments.teach:
        print(describe(Path(arguments.config)))
    else:
        run = read_config(Path(arguments.config), arguments.overrides).run()
        where = f"model is in {run / 'model'}" if (run / "model").is_dir() else f"models are below {run}"
        print(f"\nTrained. The {where}, the figures in {run / 'metrics.json'}.")


def fill_masks(arguments: argparse.Namespace) -> None:
    from perceivers.inference.fill_mask import fill_mask

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
    from perceivers.inference.classify_text import SCORE, classify_text

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
    from perceivers.inference.attention_page import attention_page

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
    from perceivers.inference.classify_image import classify_image

    classes = None if arguments.classes is None else read_lines(Path(arguments.classes))
    answers = classify_image(arguments.model, arguments.files, classes, arguments.device, arguments.dtype)
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
    from perceivers.data.flow import check_flow_path, check_largest, check_picture_path, write_flow, write_picture
    from perceivers.inference.flow import flow, flow_video
    from perceivers.inference.prepare import check_folder

    outputs = [path for path in (arguments.out, arguments.picture) if path is not None]
    for path in outputs:
        check_folder(path)
    shared = {name: getattr(arguments, name) for name in ("overlap", "batch_size", "device", "dtype")}
    if len(arguments.frames) == 1:
        if arguments.picture is not None:
            raise PerceiversError("--picture is for two frames: the flow of a video is drawn to --out.")
        (video,) = arguments.frames
        pairs = flow_video(arguments.model, video, arguments.out, largest=arguments.largest, progress=True, **shared)
        print(f"{arguments.out}: the flow of {pairs} pairs of frames, in colours.")
        return
    if len(arguments.frames) != 2:
        raise PerceiversError(f"flow needs two frames or one video, but {len(arguments.frames)} files were given.")
    check_flow_path(arguments.out)
    if arguments.picture is not None:
        check_picture_path(arguments.picture)
    check_largest(arguments.largest)
    frame1, frame2 = arguments.frames
    flow_2YX = flow(arguments.model, frame1, frame2, progress=True, **shared)
    write_flow(arguments.out, flow_2YX)
    if arguments.picture is not None:
        write_picture(arguments.picture, flow_2YX, largest=arguments.largest)
    lengths = flow_2YX.norm(dim=0)
    print(
        f"{' and '.join(outputs)}: flow of {flow_2YX.shape[2]} x {flow_2YX.shape[1]} pixels, "
        f"{lengths.mean():.2f} pixels long on average, {lengths.max():.2f} at most."
    )


def autoencode_clip(arguments: argparse.Namespace) -> None:
    from perceivers.inference.autoencode import autoencode

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


def evaluate_images(arguments: argparse.Namespace) -> None:
    from perceivers.data.images import ImageData
    from perceivers.experiments.image_classification import evaluate
    from perceivers.inference.prepare import prepare

    model = prepare(arguments.model, arguments.device, arguments.dtype)
    results = evaluate(model, ImageData(arguments.data).open().evaluation, arguments.batch_size)
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        accuracy = f"top-1 {results['top1']:.2%}, top-5 {results['top5']:.2%}"
        print(f"{results['images']} images kept for evaluation: {accuracy}, loss {results['loss']:.4f}")


def train_words(arguments: argparse.Namespace) -> None:
    from perceivers.data.text import TextData
    from perceivers.data.tokenizers import SentencePiece, bytes_per_token, train_tokenizer
    from perceivers.inference.prepare import check_folder

    check_folder(arguments.out)
    data, out = TextData(path=arguments.data, leave_out=arguments.leave_out), Path(arguments.out)
    train_tokenizer(data.documents_once(), out, arguments.vocabulary)
    tokenizer = SentencePiece(out)
    average = bytes_per_token(tokenizer, islice(data.documents_once(), 1000))
    print(f"{out}: {tokenizer.size} tokens of {average:.2f} bytes of text on average, white space not counted.")


def convert_model(arguments: argparse.Namespace) -> None:
    from perceivers.checkpoints.export import to_transformers

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
    from perceivers.experiments.demo import demo

    demo(Path(arguments.output), arguments.epochs)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; what the user can put right ends in one sentence and exit status 2."""
    parser = build_parser()
    arguments, overrides = parser.parse_known_args(argv)
    if arguments.command != "fit" and overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    arguments.overrides = overrides
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except PerceiversError as error:
        print(f"perceivers: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever reads what is printed has read enough, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit
        sys.exit(141)
