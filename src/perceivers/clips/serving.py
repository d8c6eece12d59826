"""Serves autoencoders of video."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import Field
from torch import nn

from perceivers.clips.reconstruct import autoencode, is_autoencoder
from perceivers.errors import PerceiversError
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.serving.media import Mp4, Video
from perceivers.serving.service import ClassProbability, Message, Service, list_classes

SIGNATURES = ((4, b"ftyp"), (0, b"\x1a\x45\xdf\xa3"), (8, b"AVI "))
"""Where files of MP4 and QuickTime, Matroska and WebM, and AVI say what they are. Other formats, such as playlists, may
name other files, which are not to be read."""

TOP = 5
"""Number of classes in an answer."""


class ClipRequest(Message):
    """A clip to encode and decode."""

    clip: Video = Field(description="a video in MP4, QuickTime, Matroska, WebM or AVI")
    start: float = Field(default=0.0, ge=0, title="Start", description="seconds into the file")


class ClipAnswer(Message):
    """The reconstruction of a clip."""

    video: Mp4 = Field(description="the clip on the left, its reconstruction on the right, with the decoded sound")
    video_psnr: float = Field(description="peak signal-to-noise ratio of the video in dB")
    audio_psnr: float | None = Field(default=None, description="that of the sound, if there is some")
    classes: list[ClassProbability] | None = Field(default=None, description="the most probable classes")


class ClipService(Service):
    """An autoencoder of video, alone or with sound."""

    task, title = "autoencode", "Reconstructs clips"
    request, answer = ClipRequest, ClipAnswer
    max_batch = 1
    model: PerceiverIO

    @classmethod
    def accepts(cls, model: nn.Module) -> bool:
        return isinstance(model, PerceiverIO) and is_autoencoder(model) and "video" in model.outputs

    def __init__(self, model: PerceiverIO, source: str | Path) -> None:
        self.model = model

    def read(self, request: ClipRequest) -> ClipRequest:
        if not any(request.clip[start:].startswith(mark) for start, mark in SIGNATURES):
            raise PerceiversError(
                "the clip is not a video in MP4, QuickTime, Matroska, WebM or AVI: send another file."
            )
        return request

    def compute(self, items: Sequence[ClipRequest]) -> list[ClipAnswer]:
        return [self.reconstruct(item) for item in items]

    def reconstruct(self, request: ClipRequest) -> ClipAnswer:
        """Returns the reconstruction of a clip."""
        with TemporaryDirectory() as folder:
            clip, out = Path(folder) / "the clip", Path(folder) / "reconstruction.mp4"
            clip.write_bytes(request.clip)
            try:
                found = autoencode(self.model, clip, out, request.start)
            except PerceiversError as error:
                raise PerceiversError(str(error).replace(str(clip), clip.name)) from error
            assert found.video_psnr is not None
            return ClipAnswer(
                video=out.read_bytes(),
                video_psnr=found.video_psnr,
                audio_psnr=found.audio_psnr,
                classes=list_classes(found.classes, TOP) or None,
            )
