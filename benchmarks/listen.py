"""Are reconstructed sounds understood? Accuracy of a classifier of clips on test clips before and after an autoencoder.

    python benchmarks/listen.py AUTOENCODER CLASSIFIER DATA

Both are models that `perceivers fit` saved: configs/autoencoding/spoken_digits.yaml, and
configs/clips/spoken_digits_mel.yaml. DATA is a folder of parquet files, whose test clips are used.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from perceivers.clips.classify import ClipPredictor, classify_clips
from perceivers.clips.data import LabelledClips
from perceivers.clips.reconstruct import autoencode
from perceivers.data.labelled_files import open_evaluation
from perceivers.inference import load_for_inference


def main() -> None:
    """Prints both accuracies, and the mean signal-to-noise ratio of whole files, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("autoencoder", "classifier", "data"):
        parser.add_argument(name)
    arguments = parser.parse_args()
    model, listener = load_for_inference(arguments.autoencoder), ClipPredictor(arguments.classifier)
    clips, part = open_evaluation(LabelledClips, arguments.data, "test")
    labels = [clips.classes[label] for label in clips.labels]
    with tempfile.TemporaryDirectory() as folder:
        originals, decoded, ratios = [], [], []
        for index in range(len(clips)):
            original, out = Path(folder, f"{index}.wav"), Path(folder, f"{index}_decoded.wav")
            original.write_bytes(clips.source.open(clips.indices[index]).getvalue())
            ratios.append(autoencode(model, original, out).audio_snr)
            originals.append(original)
            decoded.append(out)
        heard = [[next(iter(answer)) for answer in classify_clips(listener, files)] for files in (originals, decoded)]
    before, after = (
        statistics.mean(found == label for found, label in zip(answers, labels, strict=True)) for answers in heard
    )
    print(json.dumps({"clips": str(part), "original": before, "decoded": after, "snr": statistics.mean(ratios)}))


if __name__ == "__main__":
    main()
