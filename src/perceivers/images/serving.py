"""Serves classifiers of images. Shape suffixes: B batch, C colors, Y rows, X columns, M elements of the input."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from perceivers.data.image_files import evaluation_view, read_image, to_tensor
from perceivers.images.classify import ImagePredictor, is_image_classifier
from perceivers.inference import check_answers
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.serving.attention import answer_with_attention
from perceivers.serving.media import Picture, Png, draw_attention, open_picture, write_png
from perceivers.serving.service import ClassProbability, Message, Service, list_classes


class ImageRequest(Message):
    """A picture to classify."""

    picture: Picture = Field(description="a picture, in any usual format")
    top: int = Field(
        default=5, ge=1, title="Classes", description="number of classes to return, the most probable ones"
    )
    attention: bool = Field(default=False, description="also draw what the model attends to")


class ImageAnswer(Message):
    """The most probable classes of a picture."""

    classes: list[ClassProbability]
    seen: Png | None = Field(
        default=None, description="with attention: the picture as the model sees it, resized and cropped"
    )
    attention: Png | None = Field(default=None, description="to lay over it: the opacity is the weight of attention")


class ImageItem(NamedTuple):
    """An image as bytes [C, Y, X], and the request."""

    image: Tensor
    request: ImageRequest


class ImageService(Service):
    """A classifier of images."""

    task, title = "classify-image", "Classifies pictures"
    request, answer = ImageRequest, ImageAnswer

    @classmethod
    def accepts(cls, model: nn.Module) -> bool:
        return isinstance(model, PerceiverIO) and is_image_classifier(model)

    def __init__(self, model: PerceiverIO, source: str | Path) -> None:
        self.predictor = ImagePredictor(model)
        self.model, self.classes = model, self.predictor.names

    def read(self, request: ImageRequest) -> ImageItem:
        adapter = self.predictor.adapter
        file = open_picture(request.picture, "the picture")
        image = read_image(file, "the picture", "L" if adapter.in_channels == 1 else "RGB")
        return ImageItem(to_tensor(evaluation_view(image, adapter.size, adapter.crop)), request)

    @torch.inference_mode()
    def compute(self, items: Sequence[ImageItem]) -> list[ImageAnswer]:
        plain = [item for item in items if not item.request.attention]
        answers = dict[int, ImageAnswer]()
        if plain:
            outputs, _ = self.predictor.compute({"image": self.stack(plain)})
            answers |= zip(map(id, plain), self.rank(outputs, plain), strict=True)
        for item in items:
            if item.request.attention:  # one at a time: all weights are in memory
                answers[id(item)] = self.explain(item)
        return [answers[id(item)] for item in items]

    def stack(self, items: Sequence[ImageItem]) -> Tensor:
        """Returns images as a batch on the model's device."""
        return torch.stack([item.image for item in items]).to(self.predictor.model.device)

    def rank(self, outputs: Any, items: Sequence[ImageItem]) -> list[ImageAnswer]:
        """Returns the most probable classes of each image."""
        return [
            ImageAnswer(classes=list_classes(row, item.request.top))
            for row, item in zip(self.predictor.rank(check_answers(outputs)), items, strict=True)
        ]

    def explain(self, item: ImageItem) -> ImageAnswer:
        """Returns the classes of an image, and what the model attends to."""
        adapter = self.predictor.adapter
        image_BCYX = self.stack([item])
        outputs, weight_BM = answer_with_attention(self.predictor.model, {"image": image_BCYX}, {"label": None})
        (answer,) = self.rank(outputs, [item])
        weight_YX = weight_BM.view(adapter.features.grid(*adapter.size))
        seen, attention = write_png(item.image), write_png(draw_attention(weight_YX))
        return answer.model_copy(update={"seen": seen, "attention": attention})
