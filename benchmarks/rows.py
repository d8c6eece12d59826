"""What is measured: a row a work, precision and batch."""

from dataclasses import asdict, dataclass, replace
from typing import Any

BOTH = ("theirs", "ours")
COMPILED = ("ours", "ours compiled")
ALL = ("theirs", "theirs compiled", "ours", "ours compiled")


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        work: what is done, in words.
        model: a model of `models.py`, or "perceiver_pytorch" (`others.py`).
        dtype: "float32" or "bfloat16".
        mode: "forward" or "train" (forward, loss, backward; no optimizer's update).
        batch: examples.
        rounds: how often each side is measured.
        warm: what is run before, uncounted: "call" (all of it) or "part" (a smaller crop, one part, or one example).
        lengths: bytes of the texts of a batch (language); none: all that the model reads.
        asked: how many bytes in the middle of every text are masked and asked for; 0: all are asked for.
        sides: what is compared, the first being what the others' ratios refer to.
        equal: whether the sides have the same weights, so that their answers must agree.
        quick: whether it is part of the quick run.
    """

    work: str
    model: str
    dtype: str
    mode: str = "forward"
    batch: int = 1
    rounds: int = 3
    warm: str = "call"
    lengths: tuple[int, ...] = ()
    asked: int = 0
    sides: tuple[str, ...] = BOTH
    equal: bool = True
    quick: bool = False

    @property
    def key(self) -> str:
        """Its name, of which there is one."""
        compiled = ", compiled" if self.sides == COMPILED else ""
        return f"{self.work}, batch {self.batch}, {self.dtype}{compiled}"

    def to_json(self) -> dict[str, Any]:
        """The row as a worker is told of it."""
        return asdict(self) | {"key": self.key}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Row":
        """The row that `to_json` described."""
        fields = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        fields.pop("key")
        return cls(**fields)


LANGUAGE = "language, 2,048 bytes"
FILL = "language, one word of 9 in 64 bytes"
MIXED = "language, 8 texts of 64 to 2,048 bytes"
LANGUAGE_STEP = "language training step"
FOURIER = "ImageNet Fourier"
FOURIER_STEP = "ImageNet Fourier training step"
FLOW = "flow 368 x 496"
FLOW_STEP = "flow training step, 184 x 248"
CLIP = "autoencoding of a clip"
OTHER = "as perceiver-pytorch"
MIX = (64, 128, 256, 512, 768, 1024, 1536, 2048)


def pair(work: str, model: str, rounds: tuple[int, int], **settings: Any) -> list[Row]:
    """A row in float32 and one in bfloat16, with the rounds of each."""
    dtypes = ("float32", "bfloat16")
    return [
        Row(work, model, dtype, rounds=count, **settings) for dtype, count in zip(dtypes, rounds, strict=True) if count
    ]


def cpu_rows() -> list[Row]:
    """All rows of the run on CPU; `rounds` of 0 leaves a precision out."""
    rows = [
        *pair(LANGUAGE, "language", (5, 5), quick=True),
        *pair(LANGUAGE, "language", (2, 2), batch=4),
        *pair(FILL, "language", (5, 5), lengths=(64,), asked=9, quick=True),
        *pair("language, 64 bytes", "language", (3, 3), lengths=(64,)),
        *pair("language, 256 bytes", "language", (3, 3), lengths=(256,)),
        *pair("language, 1,000 bytes", "language", (3, 3), lengths=(1000,)),
        *pair(MIXED, "language", (1, 2), lengths=MIX, batch=len(MIX), warm="part"),
        *pair(LANGUAGE_STEP, "language", (3, 3), mode="train"),
        *pair(LANGUAGE_STEP, "language", (0, 2), mode="train", batch=4, warm="part"),
        *pair(FOURIER, "imagenet_fourier", (3, 3), quick=True),
        *pair(FOURIER, "imagenet_fourier", (1, 2), batch=4, warm="part"),
        *pair(FOURIER_STEP, "imagenet_fourier", (2, 2), mode="train"),
        *pair(FOURIER_STEP, "imagenet_fourier", (0, 1), mode="train", batch=4, warm="part"),
        *pair("ImageNet learned", "imagenet_learned", (2, 3)),
        *pair("ImageNet learned", "imagenet_learned", (1, 2), batch=2, warm="part"),
        *pair("ImageNet conv", "imagenet_conv", (2, 3)),
        *pair("ImageNet conv", "imagenet_conv", (2, 3), batch=2, warm="part"),
        *pair(FLOW, "flow", (1, 2), warm="part"),
        *pair(FLOW, "flow", (0, 1), batch=2, warm="part"),
        *pair(FLOW_STEP, "flow", (1, 1), mode="train", warm="part"),
        *pair(CLIP, "clip", (1, 1), warm="part"),
        *pair(CLIP, "clip", (0, 1), batch=2, warm="part"),
        *pair(OTHER, "perceiver_pytorch", (5, 5), equal=False),
        *pair(f"{OTHER}, training step", "perceiver_pytorch", (3, 3), mode="train", batch=4, equal=False),
        *pair(LANGUAGE, "language", (3, 2), sides=COMPILED),
        *pair(LANGUAGE_STEP, "language", (0, 3), mode="train", sides=COMPILED),
    ]
    quick = (FOURIER_STEP, 1, "bfloat16", BOTH)
    return [replace(row, quick=True) if (row.work, row.batch, row.dtype, row.sides) == quick else row for row in rows]


def rows_without_bfloat16() -> list[Row]:
    """The rows on a CPU without instructions for bfloat16: those in float32, and the smallest in bfloat16, once.

    The others would take minutes to hours each, in torch's plain loop.
    """
    smallest = [replace(row, rounds=1) for row in cpu_rows() if row.key == f"{OTHER}, batch 1, bfloat16"]
    return [row for row in cpu_rows() if row.dtype == "float32"] + smallest


def cuda_rows() -> list[Row]:
    """All rows of the run on a GPU. Batches are halved until every side has memory enough."""
    common: dict[str, Any] = {"dtype": "bfloat16", "rounds": 5, "sides": ALL}
    classifiers = [FOURIER, "ImageNet learned", "ImageNet conv"]
    return [
        Row(LANGUAGE, "language", batch=256, quick=True, **common),
        Row(FILL, "language", batch=1, lengths=(64,), asked=9, **common),
        Row(LANGUAGE_STEP, "language", mode="train", batch=128, **common),
        *(
            Row(work, model, batch=256, quick=work == FOURIER, **common)
            for work, model in zip(classifiers, ("imagenet_fourier", "imagenet_learned", "imagenet_conv"), strict=True)
        ),
        Row(FOURIER_STEP, "imagenet_fourier", mode="train", batch=128, quick=True, **common),
        Row(FLOW, "flow", batch=16, quick=True, **common),
        Row(FLOW, "flow", batch=8, **(common | {"dtype": "float32"})),
        Row(FLOW_STEP, "flow", mode="train", batch=16, **common),
        Row(FLOW_STEP, "flow", mode="train", batch=8, **(common | {"dtype": "float32"})),
        Row(CLIP, "clip", batch=8, warm="part", **common),
    ]


def tiny(row: Row) -> Row:
    """The row for a tiny model: short texts, few rounds."""
    lengths = tuple(max(4, length * 40 // 2048) for length in row.lengths)
    if row.asked:
        lengths = (20,)
    return replace(row, lengths=lengths, rounds=min(row.rounds, 2), batch=min(row.batch, 8))
