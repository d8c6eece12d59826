"""Serves models of optical flow. Shape suffixes: C colors, Y rows, X columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field
from torch import Tensor, nn

from perceivers.data.image_files import read_image, to_tensor
from perceivers.errors import PerceiversError
from perceivers.flow.adapter import FlowOutput, FramePairInput
from perceivers.flow.estimate import BUNDLED_MODEL, estimate_flow
from perceivers.flow.files import encode_flo
from perceivers.flow.pictures import draw_flow
from perceivers.inference import find_adapter
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.serving.media import Picture, Png, open_picture, write_png
from perceivers.serving.service import Content, Message, Service

EXAMPLE = Path(__file__).parent / "example"
"""Two frames of a generated scene: seed 14, 240 x 320 pixels, 3 to 6 shapes, a mean motion of 3 pixels."""

MAX_PIXELS = 2**21
"""Pixels of the largest frame: a little more than those of Full HD."""

TILES = 8
"""Tiles of a pair that are computed at once."""


class FlowRequest(Message):
    """Two pictures of the same size, one shortly after the other."""

    frame1: Picture = Field(title="First frame")
    frame2: Picture = Field(title="Second frame", description="a picture of the same size")
    max_flow: float | None = Field(
        default=None,
        gt=0,
        title="Full color",
        description="length in pixels that has full color; by default the longest",
    )
    flow: bool = Field(default=False, description="also return the flow as a .flo file")


class FlowAnswer(Message):
    """The motion of each pixel from the first frame to the second."""

    picture: Png = Field(description="the flow in colors: the hue is the direction, the saturation the length")
    mean: float = Field(description="mean length of the flow in pixels")
    max: float = Field(description="largest length of the flow in pixels")
    flow: Content | None = Field(default=None, title="flow.flo", description="a .flo file")


class FlowItem(NamedTuple):
    """Two frames as bytes [3, Y, X], and the request."""

    frame1: Tensor
    frame2: Tensor
    request: FlowRequest


class FlowService(Service):
    """A model of optical flow. Its batches are tiles of one pair of frames."""

    task, title = "flow", "Estimates optical flow"
    request, answer = FlowRequest, FlowAnswer
    max_batch, bundled = 1, BUNDLED_MODEL

    @classmethod
    def accepts(cls, model: nn.Module) -> bool:
        if not isinstance(model, PerceiverIO):
            return False
        try:
            find_adapter(model.inputs, FramePairInput, "flow")
            find_adapter(model.outputs, FlowOutput, "flow")
        except PerceiversError:
            return False
        return True

    def __init__(self, model: PerceiverIO, source: str | Path) -> None:
        self.model = model

    def read(self, request: FlowRequest) -> FlowItem:
        first, second = read_frame("the first frame", request.frame1), read_frame("the second frame", request.frame2)
        if first.shape != second.shape:
            sizes = " and ".join(f"{frame.shape[2]} x {frame.shape[1]} pixels" for frame in (first, second))
            raise PerceiversError(f"the frames differ in size, {sizes}: send two of the same size.")
        return FlowItem(first, second, request)

    def compute(self, items: Sequence[FlowItem]) -> list[FlowAnswer]:
        return [self.estimate(item) for item in items]

    def estimate(self, item: FlowItem) -> FlowAnswer:
        """Returns the flow between two frames."""
        flow_2YX = estimate_flow(self.model, item.frame1, item.frame2, batch_size=TILES)
        length_YX = flow_2YX.norm(dim=0)
        return FlowAnswer(
            picture=write_png(draw_flow(flow_2YX, item.request.max_flow)),
            mean=float(length_YX.mean()),
            max=float(length_YX.max()),
            flow=encode_flo(flow_2YX.permute(1, 2, 0).numpy()) if item.request.flow else None,
        )

    def example(self) -> FlowRequest:
        first, second = ((EXAMPLE / f"{name}.jpg").read_bytes() for name in ("frame1", "frame2"))
        return FlowRequest(frame1=first, frame2=second)


def read_frame(name: str, content: bytes) -> Tensor:
    """Returns a frame as bytes [3, Y, X]; its name is for errors."""
    return to_tensor(read_image(open_picture(content, name, MAX_PIXELS), name))
