"""The command `perceivers`: its arguments; what each of its commands does is in `perceivers.commands`."""

import argparse
import os
import sys
from collections.abc import Sequence

import perceivers
from perceivers import commands
from perceivers.errors import PerceiversError

EXAMPLES = """\
examples:
  perceivers demo                                     train on handwritten digits, in minutes
  perceivers models                                   the paper's models, with parameters and FLOPs
  perceivers fit configs/image_classification/digits.yaml --training.epochs=5
  perceivers fit CONFIG --help                        every field of that experiment's config
  perceivers evaluate runs/demo/model --data digits
  perceivers evaluate FLOW_MODEL --data Sintel --picture compared
  perceivers classify-image runs/demo/model picture.png
  perceivers fill-mask MODEL "This is an incomplete sentence where some words are[MASK*9]"
  perceivers classify-text MODEL "A film to see twice."
  perceivers attention MODEL "A film to see twice." --out attention.html
  perceivers flow frame1.png frame2.png --out flow.flo --picture flow.png
  perceivers classify-clip MODEL clip.mp4 sound.wav --windows 16
  perceivers autoencode MODEL clip.mp4 --out reconstruction.mp4
  perceivers make-flow-data pairs/ --pairs 1000
  perceivers prepare-replays replays/ tables/
  perceivers train-tokenizer texts/ --out words.model --vocabulary 32000
  perceivers convert language_perceiver_io_bytes.pickle language --to transformers
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        "perceivers", description=perceivers.__doc__, epilog=EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--version", action="version", version=perceivers.__version__)
    parsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    models = parsers.add_parser("models", help="list the paper's models, measured, beside the paper's figures")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.set_defaults(run=commands.list_models)

    fit = parsers.add_parser("fit", help="train as a config file says", add_help=False)
    fit.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML or JSON file, see configs/")
    fit.add_argument("-h", "--help", action="store_true", dest="teach")
    fit.set_defaults(run=commands.fit_config)

    placed = argparse.ArgumentParser(add_help=False)
    placed.add_argument("--device", help="where to compute, such as cuda:1; the accelerator if there is one")
    placed.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="as saved, if not given")
    common = argparse.ArgumentParser(add_help=False, parents=[placed])
    common.add_argument("model", metavar="MODEL", help="a saved model, in any format (see docs/checkpoints.md)")
    printed = argparse.ArgumentParser(add_help=False)
    printed.add_argument("--json", action="store_true", help="print JSON")

    fill = parsers.add_parser("fill-mask", help="fill in masked bytes of a text", parents=[common, printed])
    fill.add_argument(
        "text", metavar="TEXT", nargs="?", help="with [MASK] for a byte, [MASK*9] for nine; '-' reads standard input"
    )
    fill.add_argument("--file", help="read the text from a file instead")
    fill.add_argument("--top", type=int, default=5, help="how many candidates to print for each byte (5)")
    fill.set_defaults(run=commands.fill_masks)

    label = parsers.add_parser("classify-text", help="say of which class texts are", parents=[common, printed])
    label.add_argument("text", metavar="TEXT", nargs="?", help="'-' reads standard input, one text a line")
    label.add_argument("second", metavar="TEXT2", nargs="?", help="the other text of a pair")
    label.add_argument("--file", help="read texts from a file instead, one a line")
    label.add_argument("--task", help="which of the model's tasks, if it has several")
    label.add_argument("--top", type=positive, default=5, help="how many classes to print for each text (5)")
    label.set_defaults(run=commands.classify_texts)

    attention = parsers.add_parser("attention", help="draw what latents read of a text", parents=[common])
    attention.add_argument(
        "text", metavar="TEXT", nargs="?", help="[MASK] masks a token, [MASK*9] nine; '-' reads standard input"
    )
    attention.add_argument("--file", help="read the text from a file instead")
    attention.add_argument("--out", required=True, help="the page to write, such as attention.html")
    attention.add_argument("--latents", type=int, nargs="+", help="which latents; up to six that differ, if not given")
    attention.add_argument("--heads", action="store_true", help="also draw each head of the attention")
    attention.add_argument("--task", help="which task the model is to do, if it reads texts differently for each")
    attention.set_defaults(run=commands.draw_attention)

    classify = parsers.add_parser("classify-image", help="say what is in image files", parents=[common, printed])
    classify.add_argument("files", metavar="FILE", nargs="+")
    classify.add_argument("--classes", metavar="FILE", help="names of the classes, one a line, in order")
    classify.add_argument("--top", type=positive, default=5, help="how many classes to print for each file (5)")
    classify.set_defaults(run=commands.classify_images)

    hear = parsers.add_parser("classify-clip", help="say what is seen and heard in clips", parents=[common, printed])
    hear.add_argument("files", metavar="FILE", nargs="+", help="with sound or video, whichever the model reads")
    hear.add_argument(
        "--windows", type=positive, default=1, help="evenly spaced in each clip, whose answers are averaged (1)"
    )
    hear.add_argument("--top", type=positive, default=5, help="how many classes to print for each file (5)")
    hear.set_defaults(run=commands.classify_clips)

    flow = parsers.add_parser("flow", help="optical flow of two frames, or of a video", parents=[placed])
    flow.add_argument(
        "files",
        metavar="[MODEL] FRAME",
        nargs="+",
        help="two image files of the same size, or one video; before them a saved model, in any format, or none: then "
        "the small one that comes with the package answers",
    )
    flow.add_argument(
        "--out", required=True, help=".flo, .png (KITTI), .pfm, .flo5, .npy for two frames; .mp4 for a video"
    )
    flow.add_argument("--picture", help="also draw the flow of two frames in colours, to this file")
    flow.add_argument("--largest", type=float, help="pixels of flow that have full colour; the longest, if not given")
    flow.add_argument("--overlap", type=int, default=20, help="fewest pixels by which tiles overlap (20)")
    flow.add_argument("--batch-size", type=int, default=1, help="tiles computed at a time (1)")
    flow.set_defaults(run=commands.compute_flow)

    code = parsers.add_parser(
        "autoencode", help="a clip with sound through the latents and back", parents=[common, printed]
    )
    code.add_argument("clip", metavar="CLIP", help="a video file")
    code.add_argument("--out", required=True, help="the video to write, original beside reconstruction")
    code.add_argument("--start", type=float, default=0.0, help="seconds into the file (0)")
    code.add_argument("--top", type=positive, default=5, help="how many classes to print (5)")
    code.set_defaults(run=commands.autoencode_clip)

    evaluate = parsers.add_parser(
        "evaluate",
        help="measure a saved model of images, clips, optical flow or units on data",
        parents=[common, printed],
    )
    evaluate.add_argument(
        "--data",
        required=True,
        help="of images: 'digits', a folder, or a data set of the hub, of which the evaluation split or held-out part "
        "counts; of clips: likewise, or any clips for an autoencoder without label; of optical flow: the folder of a "
        "data set as it is published, such as Sintel's; of units: what prepare-replays wrote",
    )
    evaluate.add_argument(
        "--batch-size", type=positive, help="images (64), windows of clips (16, or 1) or tiles (1) computed at a time"
    )
    evaluate.add_argument("--windows", type=positive, help="evenly spaced in each clip, whose answers are averaged (1)")
    evaluate.add_argument(
        "--list",
        metavar="CSV",
        help="which clips below --data, and their classes (docs/clips.md); or a split of replays",
    )
    evaluate.add_argument(
        "--classes", metavar="FILE", help="what the list's classes are: AudioSet's file, or one a line"
    )
    evaluate.add_argument("--split", help="which part of a data set of optical flow (training), or of replays (test)")
    evaluate.add_argument("--picture", metavar="FOLDER", help="also draw the flow of each pair, and its error, to here")
    evaluate.add_argument("--overlap", type=int, help="fewest pixels by which tiles of frames overlap (20)")
    evaluate.set_defaults(run=commands.evaluate_model)

    words = parsers.add_parser("train-tokenizer", help="make a vocabulary of pieces of words from text")
    words.add_argument("data", metavar="DATA", help="text, as in data.path of a pretraining run")
    words.add_argument("--leave-out", nargs="+", default=[], metavar="PATTERN", help="names of text files not to read")
    words.add_argument("--out", required=True, help="the SentencePiece model to write, such as words.model")
    words.add_argument("--vocabulary", type=positive, default=32000, help="number of tokens (32000)")
    words.set_defaults(run=commands.train_words)

    pairs = parsers.add_parser("make-flow-data", help="generate pairs of frames with exact flow, as files")
    pairs.add_argument("out", metavar="OUT", help="the folder to write, in the layout of FlyingChairs")
    pairs.add_argument("--pairs", type=positive, default=1000, help="how many (1000); those that are there are kept")
    pairs.add_argument("--size", type=positive, nargs=2, metavar=("HEIGHT", "WIDTH"), default=(368, 496))
    pairs.add_argument("--motion", type=float, default=10.0, help="pixels that the background moves on average (10)")
    pairs.add_argument("--tail", type=float, default=1.0, help="above 1: longer motions, and more short ones (1)")
    pairs.add_argument("--textures", metavar="FOLDER", help="images to paint with; some come with the package")
    pairs.add_argument("--blur", type=float, default=0.0, help="part of the pairs with motion blur (0)")
    pairs.add_argument("--fog", type=float, default=0.0, help="part of the pairs with fog (0)")
    pairs.add_argument("--lighting", type=float, default=0.0, help="part whose second frame is lighted otherwise (0)")
    pairs.add_argument("--seed", type=int, default=0, help="of textures, shapes and pairs (0)")
    pairs.set_defaults(run=commands.make_flow_data)

    replays = parsers.add_parser("prepare-replays", help="write the decisions in StarCraft II replays as tables")
    replays.add_argument("source", metavar="IN", help="a folder with .SC2Replay files")
    replays.add_argument("out", metavar="OUT", help="the folder to write; replays that are there are kept")
    replays.add_argument("--team-games", action="store_true", help="take games of more than two players, too")
    replays.set_defaults(run=commands.prepare_replays)

    convert = parsers.add_parser("convert", help="write a model in another format")
    convert.add_argument("source", metavar="SRC", help="a saved model, in any format")
    convert.add_argument("target", metavar="DST", help="the folder to write")
    convert.add_argument("--to", required=True, choices=["perceivers", "transformers"])
    convert.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting that the source does not tell"
    )
    convert.set_defaults(run=commands.convert_model)

    demo = parsers.add_parser("demo", help="train a small Perceiver IO on handwritten digits and show what it does")
    demo.add_argument("--output", default="runs/demo", help="folder to write to (runs/demo)")
    demo.add_argument("--epochs", type=int, default=None, help="passes over the training digits")
    demo.set_defaults(run=commands.run_demo)
    return parser


def positive(text: str) -> int:
    """An argument that is at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not allowed: it must be at least 1")
    return number


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
