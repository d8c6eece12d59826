"""The claims of the paper's abstract, and which results speak for or against them."""

from dataclasses import dataclass
from functools import reduce
from typing import Any


@dataclass(frozen=True)
class Method:
    """A row of a table: what it is called, the result it comes from, and where in its metrics the figure is."""

    title: str
    result: str
    metric: tuple[str, ...]

    def get(self, result: dict[str, Any]) -> float:
        """Returns the figure of a result."""
        return float(reduce(lambda found, key: found[key], self.metric, result["metrics"]))


@dataclass(frozen=True)
class Claim:
    """A claim, and the methods that are compared: ours, what ours has to match, and others.

    Attributes:
        paper: the paper's figures.
        column: what the figure is called.
        tolerance: how much worse ours may be, relative to the other.
        readme: the first cells of its row in the README: the experiment, rows of the paper, configs.
    """

    title: str
    text: str
    paper: str
    column: str
    ours: Method
    matched: Method
    others: tuple[Method, ...] = ()
    higher_is_better: bool = True
    percent: bool = True
    digits: int = 1
    tolerance: float = 0.0
    readme: tuple[str, str, str] = ("", "", "")

    @property
    def methods(self) -> tuple[Method, ...]:
        return (self.ours, self.matched, *self.others)

    def show(self, value: float) -> str:
        """Returns a figure as it is printed."""
        return f"{100 * value:.{self.digits}f}%" if self.percent else f"{value:.{self.digits}f}"


BITS, TOP1, F1 = ("val_bits_per_byte",), ("val_top1",), ("val_f1",)


def flow_error(method: str) -> tuple[str, ...]:
    """Returns where the end-point error of a method is in what `perceivers evaluate` prints."""
    return ("middlebury", method, "errors", "epe")


CLAIMS = (
    Claim(
        "Language: masked bytes",
        "On raw bytes, without a tokenizer, Perceiver IO matches BERT of equal FLOPs.",
        "GLUE 81.0 on bytes; BERT of equal FLOPs 71.5 on bytes, 81.1 on pieces.",
        "bits per hidden byte",
        Method("Perceiver IO", "masked_bytes", BITS),
        Method("BERT of equal FLOPs", "masked_bytes_bert", BITS),
        higher_is_better=False,
        percent=False,
        digits=3,
        readme=(
            "[language](docs/language.md): masked bytes, GLUE",
            "all three of Perceiver IO, both of BERT; published weights",
            "`language/mlm_bytes_mini.yaml`, then `glue_mini.yaml`; any text, `classify.yaml` for one's own classes",
        ),
    ),
    Claim(
        "Images without knowledge of two dimensions",
        "The same architecture classifies images from raw pixels, without convolutions or patches.",
        "ImageNet 79.0% with Fourier positions, 72.7% with learned ones.",
        "test accuracy, handwritten digits",
        Method("Perceiver IO on 64 pixels, digits", "digits", TOP1),
        Method("logistic regression on pixels, digits", "linear_digits", TOP1),
        (
            Method("Perceiver IO on 1,024 pixels, CIFAR-10", "cifar10", TOP1),
            Method("logistic regression on pixels, CIFAR-10", "linear_cifar10", TOP1),
        ),
        readme=(
            "[ImageNet classification](docs/image_classification.md)",
            "all eight, parameters and FLOPs checked; published weights",
            "`image_classification/digits.yaml`, `cifar10.yaml`; the paper's recipes: `imagenet_*.yaml`",
        ),
    ),
    Claim(
        "Optical flow",
        "Optical flow needs no machinery for correspondences at several scales.",
        "Sintel clean 1.81, final 2.42, better than PWCNet and RAFT trained on the same data.",
        "end-point error on Middlebury, pixels",
        Method("Perceiver IO, the model in the package", "flow_included", flow_error("model")),
        Method("DIS, fast", "flow_included", flow_error("DIS fast")),
        (
            Method("Farneback", "flow_included", flow_error("Farneback")),
            Method("zero flow", "flow_included", flow_error("zero flow")),
            Method("Perceiver IO, after the first of its two runs", "flow", flow_error("model")),
        ),
        higher_is_better=False,
        percent=False,
        digits=2,
        readme=(
            "[optical flow](docs/optical_flow.md)",
            "all seven of the ablation; published weights",
            "`flow/mini.yaml` with generated pairs, or eight published data sets; the paper's curriculum",
        ),
    ),
    Claim(
        "Video, sound and labels",
        "One model autoencodes several modalities at once.",
        "Kinetics: video 24.37 dB, sound 26.97 dB (PSNR) at 88x.",
        "PSNR of held-out video, dB",
        Method("Perceiver IO, 85x", "clip", ("val_video_psnr",)),
        Method("mean frame", "mean_frame", ("val_video_psnr",)),
        percent=False,
        digits=2,
        readme=(
            "[video, sound and label autoencoding](docs/autoencoding.md)",
            "all three compressions; published weights",
            "`autoencoding/mini.yaml` with windows of one clip, or labeled clips",
        ),
    ),
    Claim(
        "Sound alone",
        "The latents keep sound, too.",
        "Kinetics: sound 26.97, 25.33 and 14.15 dB (PSNR) at 88x, 176x and 352x.",
        "signal-to-noise ratio of held-out spoken digits, dB",
        Method("Perceiver IO, 2x", "sound", ("val_audio_snr",)),
        Method("silence", "silence", ("val_audio_snr",)),
        percent=False,
        digits=2,
        readme=(
            "[sound alone](docs/autoencoding.md#sound)",
            "",
            "`autoencoding/spoken_digits.yaml`, or your own sounds",
        ),
    ),
    Claim(
        "Units of StarCraft II",
        "As the encoder of units, Perceiver IO replaces AlphaStar's Transformer at a fraction of its FLOPs.",
        "both 87% of games won; 3.5 times fewer FLOPs.",
        "F1 of selected units",
        Method("Perceiver IO, 32 latents", "units", F1),
        Method("Transformer at 3.9 times the FLOPs", "units_transformer", F1),
        (Method("select what was selected before", "units_rules", ("as before", "f1")),),
        readme=(
            "[StarCraft II's units](docs/starcraft.md)",
            "encoder and AlphaStar's Transformer, FLOPs checked",
            "`starcraft/perceiver.yaml`, `transformer.yaml` with replays",
        ),
    ),
    Claim(
        "Sound, raw or as a spectrogram",
        "Raw samples serve nearly as well as a spectrogram.",
        "AudioSet 43.3 mAP from raw samples, 44.9 from the spectrogram.",
        "test accuracy, spoken digits",
        Method("raw samples", "spoken_digits_raw", TOP1),
        Method("mel-spectrogram", "spoken_digits_mel", TOP1),
        (Method("logistic regression on means of mel bands", "linear_spoken_digits", TOP1),),
        tolerance=0.04,
        readme=(
            "[AudioSet classification](docs/clips.md)",
            "all four, parameters and FLOPs checked",
            "`clips/spoken_digits_*.yaml`, `audioset_*.yaml`; the lists of AudioSet and Kinetics",
        ),
    ),
    Claim(
        "The next byte",
        "Beyond the paper: causal latents (Perceiver AR) predict the next byte as a Transformer of equal FLOPs does.",
        "",
        "bits per byte, tiny Shakespeare",
        Method("Perceiver AR", "next_byte", BITS),
        Method("Transformer of equal FLOPs", "next_byte_transformer", BITS),
        higher_is_better=False,
        percent=False,
        digits=3,
        readme=("[generation](docs/generation.md), beyond the paper", "", "`language/perceiver_ar_mini.yaml`"),
    ),
)

UNTESTED = {
    "State of the art on Sintel and KITTI": "training takes AutoFlow and weeks on accelerators; published weights load",
    "GLUE on par with BERT": "pretraining takes 500,000 steps on C4; the five tasks at hand are in docs/language.md",
    "ImageNet, AudioSet and Kinetics at the paper's size": "neither the data nor accelerators are here",
    "Time linear in inputs and outputs": "measured, with exponents, in docs/performance.md",
}
"""What is claimed, and why it is not tested here."""
