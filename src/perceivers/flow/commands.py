"""The commands of optical flow: `flow`, `make-flow-data`, and `evaluate` for its models."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from perceivers.checks import Count
from perceivers.command import Device, Json, Metavar, ModelArgument, Precision, print_json, print_table
from perceivers.errors import PerceiversError

if TYPE_CHECKING:
    from perceivers.flow.evaluation import FlowScore

Overlap = Annotated[int, "fewest pixels by which tiles overlap"]


def flow(
    files: Annotated[
        list[str],
        "two image files of the same size, or one video; before them a saved model, in any format: without one, the "
        "small model that comes with the package is used",
        Metavar("[MODEL] FRAME"),
    ],
    *,
    out: Annotated[str, ".flo, .png (KITTI), .pfm, .flo5, .npy for two frames; .mp4 for a video"],
    picture: Annotated[str | None, "also draw the flow of two frames in colors, to this file"] = None,
    largest: Annotated[float | None, "pixels of flow that have full color; the longest, if not given"] = None,
    overlap: Overlap = 20,
    batch_size: Annotated[int, "tiles computed at a time"] = 1,
    device: Device = None,
    dtype: Precision = None,
) -> None:
    """Estimates the optical flow of two frames, or of a video."""
    from perceivers.flow.estimate import flow, flow_video
    from perceivers.flow.files import check_flow_path, write_flow
    from perceivers.flow.pictures import check_largest, check_picture_path, write_picture
    from perceivers.inference import check_folder

    outputs = [path for path in (out, picture) if path is not None]
    for path in outputs:
        check_folder(path)
    model, frames = split_model(files)
    if len(frames) == 1:
        if picture is not None:
            raise PerceiversError("--picture is for two frames: the flow of a video is drawn to --out.")
        pairs = flow_video(model, frames[0], out, overlap, batch_size, largest, device, dtype, progress=True)
        print(f"{out}: the flow of {pairs} pairs of frames, in colors.")
        return
    if len(frames) != 2:
        raise PerceiversError(f"flow needs two frames or one video, but {len(frames)} files were given.")
    check_flow_path(out)
    if picture is not None:
        check_picture_path(picture)
    check_largest(largest)
    frame1, frame2 = frames
    flow_2YX = flow(model, frame1, frame2, None, overlap, batch_size, device, dtype, progress=True)
    write_flow(out, flow_2YX)
    if picture is not None:
        write_picture(picture, flow_2YX, largest=largest)
    lengths = flow_2YX.norm(dim=0)
    print(
        f"{' and '.join(outputs)}: flow of {flow_2YX.shape[2]} x {flow_2YX.shape[1]} pixels, "
        f"{lengths.mean():.2f} pixels long on average, {lengths.max():.2f} at most."
    )


def split_model(files: list[str]) -> tuple[str | Path, list[str]]:
    """Returns the model and the frames, or the video, that `flow` is given; the package's model, if none is named."""
    from perceivers.data.image_files import SUFFIXES
    from perceivers.flow.estimate import SHIPPED

    if len(files) == 1 or (len(files) == 2 and all(Path(file).suffix.lower() in SUFFIXES for file in files)):
        return SHIPPED, files
    return files[0], files[1:]


def make_flow_data(
    out: Annotated[str, "the folder to write, in the layout of FlyingChairs"],
    *,
    pairs: Annotated[Count, "how many; those that are there already are kept"] = 1000,
    size: Annotated[tuple[int, int], "of the frames, in pixels", Metavar(("HEIGHT", "WIDTH"))] = (368, 496),
    motion: Annotated[float, "pixels that the background moves on average"] = 10.0,
    tail: Annotated[float, "above 1: longer motions, and more short ones"] = 1.0,
    textures: Annotated[
        str | None, "images to paint with; some that come with the package, if not given", Metavar("FOLDER")
    ] = None,
    blur: Annotated[float, "part of the pairs with motion blur (0)"] = 0.0,
    fog: Annotated[float, "part of the pairs with fog (0)"] = 0.0,
    lighting: Annotated[float, "part of the pairs whose second frame is lit differently (0)"] = 0.0,
    seed: Annotated[int, "of textures, shapes and pairs (0)"] = 0,
) -> None:
    """Generates pairs of frames with exact flow, as files."""
    from perceivers.flow.generator import write_scenes
    from perceivers.flow.scenes import Scenes

    height, width = size
    scenes = Scenes(
        (height, width), textures, motion=motion, tail=tail, blur=blur, fog=fog, lighting=lighting, seed=seed
    )
    write_scenes(scenes, out, pairs)
    print(f"{out}: {pairs} pairs of {width} x {height} pixels with their flow.")


def evaluate(
    model: ModelArgument,
    *,
    data: Annotated[str, "the folder of a data set as it is published, such as Sintel's"],
    split: Annotated[str, "which part of the data set"] = "training",
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
    from perceivers.flow.datasets import open_all
    from perceivers.flow.evaluation import evaluate
    from perceivers.inference import load_for_inference

    if picture is not None and picture.is_file():
        raise PerceiversError(f"--picture {picture} is a file: give a folder, new or not.")
    loaded = load_for_inference(model, device, dtype)
    results = {}
    for pairs in open_all(data, split):
        scores = evaluate(loaded, pairs, overlap, batch_size, picture, progress=True)
        results[pairs.layout] = {name: asdict(score) for name, score in scores.items()}
        if not json:
            print_scores(f"{pairs.layout}, {len(pairs)} pair{'s' if len(pairs) > 1 else ''}", scores)
    if json:
        print_json(results)


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
