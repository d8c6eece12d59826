"""The commands of optical flow: `flow`, `make-flow-data`, and `evaluate` for its models."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from perceivers.checks import Count
from perceivers.command import Device, Json, Metavar, ModelArgument, Precision, print_answer, print_json, print_table
from perceivers.data.splits import SplitOption
from perceivers.errors import PerceiversError

if TYPE_CHECKING:
    from perceivers.flow.evaluation import FlowScore

Overlap = Annotated[int, "minimum overlap of tiles in pixels"]


def flow(
    files: Annotated[
        list[str],
        "two image files of the same size, or one video; before them a saved model in any format, by default the small "
        "model of the package",
        Metavar("[MODEL] FRAME"),
    ],
    *,
    out: Annotated[str, ".flo, .png (KITTI), .pfm, .flo5, .npy for two frames; .mp4 for a video"],
    picture: Annotated[str | None, "also draw the flow of two frames in colors, to this file"] = None,
    max_flow: Annotated[float | None, "length in pixels that has full color; by default the longest"] = None,
    overlap: Overlap = 20,
    batch_size: Annotated[int, "tiles computed at a time"] = 1,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Estimates the optical flow of two frames, or of a video."""
    from perceivers.flow.estimate import draw_video_flow, estimate_flow
    from perceivers.flow.files import check_flow_path, write_flow
    from perceivers.flow.pictures import check_max_flow, check_picture_path, write_picture
    from perceivers.inference import check_folder

    outputs = [path for path in (out, picture) if path is not None]
    for path in outputs:
        check_folder(path)
    model, frames = split_model(files)
    if len(frames) == 1:
        if picture is not None:
            raise PerceiversError("--picture is for two frames: the flow of a video is drawn to --out.")
        pairs = draw_video_flow(model, frames[0], out, overlap, batch_size, max_flow, device, dtype)
        print_answer({"out": out, "pairs": pairs}, f"{out}: the flow of {pairs} pairs of frames, in colors.", json)
        return
    if len(frames) != 2:
        raise PerceiversError(f"flow needs two frames or one video, but {len(frames)} files were given.")
    check_flow_path(out)
    if picture is not None:
        check_picture_path(picture)
    check_max_flow(max_flow)
    first, second = frames
    flow_2YX = estimate_flow(model, first, second, None, overlap, batch_size, device, dtype)
    write_flow(out, flow_2YX)
    if picture is not None:
        write_picture(picture, flow_2YX, max_flow=max_flow)
    _, height, width = flow_2YX.shape
    lengths = flow_2YX.norm(dim=0)
    mean, longest = float(lengths.mean()), float(lengths.max())
    found = f"flow of {width} x {height} pixels, {mean:.2f} pixels long on average, {longest:.2f} at most"
    answer = {"out": out, "picture": picture, "size": [height, width], "mean_length": mean, "max_length": longest}
    print_answer(answer, f"{' and '.join(outputs)}: {found}.", json)


def split_model(files: list[str]) -> tuple[str | Path, list[str]]:
    """Returns the model, by default the package's, and the frames or the video among the files of `flow`."""
    from perceivers.data.image_files import SUFFIXES
    from perceivers.flow.estimate import BUNDLED_MODEL

    if len(files) == 1 or (len(files) == 2 and all(Path(file).suffix.lower() in SUFFIXES for file in files)):
        return BUNDLED_MODEL, files
    return files[0], files[1:]


def make_flow_data(
    out: Annotated[str, "folder to write, in the layout of FlyingChairs"],
    *,
    pairs: Annotated[Count, "number of pairs; existing ones are kept"] = 1000,
    size: Annotated[tuple[int, int], "of the frames in pixels", Metavar(("HEIGHT", "WIDTH"))] = (368, 496),
    motion: Annotated[float, "mean motion of the background in pixels"] = 10.0,
    motion_exponent: Annotated[float, "above 1: a heavier tail of motion lengths"] = 1.0,
    textures: Annotated[
        str | None, "images to paint with; by default photographs in the package", Metavar("FOLDER")
    ] = None,
    blur: Annotated[float, "fraction of pairs with motion blur (0)"] = 0.0,
    fog: Annotated[float, "fraction of pairs with fog (0)"] = 0.0,
    lighting: Annotated[float, "fraction of pairs whose second frame is lit differently (0)"] = 0.0,
    seed: Annotated[int, "of textures, shapes and pairs (0)"] = 0,
    json: Json = False,
) -> None:
    """Generates pairs of frames with exact flow, as files."""
    from perceivers.flow.generator import write_scenes
    from perceivers.flow.scenes import SceneConfig

    scenes = SceneConfig(
        size, textures, motion=motion, motion_exponent=motion_exponent, blur=blur, fog=fog, lighting=lighting, seed=seed
    )
    write_scenes(scenes, out, pairs)
    text = f"{out}: {pairs} pairs of {size[1]} x {size[0]} pixels with their flow."
    print_answer({"out": out, "pairs": pairs, "size": size}, text, json)


def evaluate(
    model: ModelArgument,
    *,
    data: Annotated[str, "folder of a data set as published, such as Sintel's"],
    split: SplitOption = None,
    picture: Annotated[
        Path | None, "also draw the flow of each pair, and its error, to this folder", Metavar("FOLDER")
    ] = None,
    overlap: Overlap = 20,
    batch_size: Annotated[Count, "tiles computed at a time"] = 1,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Measures a model of optical flow beside classical methods: end-point error and outliers."""
    from perceivers.flow.datasets import open_evaluation_pairs
    from perceivers.flow.evaluation import evaluate
    from perceivers.inference import load_for_inference

    if picture is not None and picture.is_file():
        raise PerceiversError(f"--picture {picture} is a file: give a folder, new or existing.")
    loaded = load_for_inference(model, device, dtype)
    results: dict[str, dict[str, Any]] = {}
    for pairs, part in open_evaluation_pairs(data, split):
        scores = evaluate(loaded, pairs, overlap, batch_size, picture)
        results[pairs.layout] = {name: asdict(score) for name, score in scores.items()} | part.fields()
        if not json:
            print_scores(f"{pairs.layout}, {part}", scores)
    if json:
        print_json(results)


def print_scores(title: str, scores: Mapping[str, "FlowScore"]) -> None:
    """Prints the errors of each method on a data set, then on each sequence."""
    (first, *_) = scores.values()
    fractions = {">1px": "over1px", ">3px": "over3px", ">5px": "over5px", "Fl-all": "fl_all"}
    regions = {f"EPE {part}": f"epe_{part}" for part in ("visible", "occluded") if f"epe_{part}" in first.errors}
    rows = []
    for name, score in scores.items():
        row = [f"{score.errors['epe']:.2f}", *(f"{score.errors[key]:.2%}" for key in fractions.values())]
        rows.append([name, *row, *(f"{score.errors[key]:.2f}" for key in regions.values()), f"{score.seconds:.3f}"])
    print_table([title, "EPE", *fractions, *regions, "seconds per pair"], rows)
    print()
    if len(first.sequences) > 1:
        rows = [[key, *(f"{score.sequences[key]:.2f}" for score in scores.values())] for key in first.sequences]
        print_table(["EPE of each sequence", *scores], rows)
        print()
