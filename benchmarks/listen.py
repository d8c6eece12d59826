"""Are reconstructed sounds understood? Accuracy of a classifier of clips on test clips before and after an autoencoder.

    python benchmarks/listen.py AUTOENCODER CLASSIFIER DATA

Both are models that `perceivers fit` saved: configs/autoencoding/spoken_digits.yaml, and
configs/clips/spoken_digits_raw.yaml. DATA is a folder of parquet files, whose test clips are used. Writes a clip of
each digit, followed by its reconstruction, to docs/autoencoding_sound.wav, and their spectra to
docs/autoencoding_sound.png.
"""

import argparse
import json
import statistics
import tempfile
from fractions import Fraction
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from perceivers.clips.classify import ClipPredictor, classify_clips
from perceivers.clips.data import LabeledClips
from perceivers.clips.reconstruct import autoencode
from perceivers.data.labeled_files import open_evaluation
from perceivers.data.video import read_sound
from perceivers.data.video_writer import write_sound
from perceivers.inference import load_for_inference

EXAMPLES = Path(__file__).parents[1] / "docs/autoencoding_sound"
SAMPLE_RATE = 8000


def main() -> None:
    """Prints both accuracies, and the mean signal-to-noise ratio of whole files, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("autoencoder", "classifier", "data"):
        parser.add_argument(name)
    arguments = parser.parse_args()
    model, listener = load_for_inference(arguments.autoencoder), ClipPredictor(arguments.classifier)
    clips, part = open_evaluation(LabeledClips, arguments.data, "test")
    labels = [clips.classes[label] for label in clips.labels]
    with tempfile.TemporaryDirectory() as folder:
        originals, decoded, results = [], [], []
        for index in range(len(clips)):
            original, out = Path(folder, f"{index}.wav"), Path(folder, f"{index}_decoded.wav")
            original.write_bytes(clips.source.open(clips.indices[index]).getvalue())
            results.append(autoencode(model, original, out))
            originals.append(original)
            decoded.append(out)
        digits = [labels.index(name) for name in clips.classes]
        draw_examples([(read_wave(originals[index]), read_wave(decoded[index])) for index in digits])
        heard = [[next(iter(answer)) for answer in classify_clips(listener, files)] for files in (originals, decoded)]
    before, after = (
        statistics.mean(found == label for found, label in zip(answers, labels, strict=True)) for answers in heard
    )
    snr = statistics.mean(result.audio_snr or 0.0 for result in results)
    print(json.dumps({"clips": str(part), "original": before, "decoded": after, "snr": snr}))


def read_wave(path: Path) -> Tensor:
    """Returns the samples of a file."""
    sound = read_sound(path, Fraction(0), Fraction(0), SAMPLE_RATE, SAMPLE_RATE)
    assert sound is not None
    return sound.samples[: sound.end]


def draw_examples(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Writes originals, each followed by its reconstruction, as sound, and their spectra."""
    pause_S = torch.zeros(SAMPLE_RATE // 5)
    parts = [part_S for original_S, decoded_S in pairs for part_S in (original_S, pause_S, decoded_S, pause_S)]
    write_sound(EXAMPLES.with_suffix(".wav"), torch.cat(parts), SAMPLE_RATE)
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for row, name in enumerate(("original", "reconstruction")):
        axis = figure.add_subplot(2, 1, row + 1)
        sound_S = torch.cat([torch.cat([pair[row], pause_S]) for pair in pairs])
        axis.specgram(sound_S.numpy() + 1e-6, NFFT=256, Fs=SAMPLE_RATE, noverlap=192, scale="dB", vmin=-110, vmax=-40)
        axis.set(ylabel=f"{name}\nHz", xticks=[])
    figure.savefig(EXAMPLES.with_suffix(".png"), dpi=60)


if __name__ == "__main__":
    main()
