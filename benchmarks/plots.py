"""The pictures of the document: scaling, and the ratios of all rows."""

from pathlib import Path
from typing import Any

COLORS = {"inputs": "#1b6ca8", "outputs": "#2a9d5c", "transformer": "#c4472b"}
LABELS = {
    "inputs": "Perceiver IO, number of inputs",
    "outputs": "Perceiver IO, number of outputs",
    "transformer": "Transformer encoder, number of inputs",
}
DTYPE_COLORS = {"float32": "#1b6ca8", "bfloat16": "#e09f3e"}


def scaling(series: dict[str, Any], file: Path) -> None:
    """Time and memory against the count, measured points and fitted curves, logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for axis, (field, unit, title) in zip(
        axes, (("seconds", 1.0, "seconds, forward pass"), ("peak", 1e9, "peak memory of the process, GB")), strict=True
    ):
        for what, found in series.items():
            points = found["points"]
            counts = [point["count"] for point in points]
            label = LABELS[what]
            if fits := found.get("fits"):
                label += f": exponent {fits[field]['exponent']:.2f}"
            axis.plot(counts, [point[field] / unit for point in points], "o", color=COLORS[what], label=label)
            if fits:
                fit = fits[field]
                curve = [(fit["fixed"] + fit["factor"] * count ** fit["exponent"]) / unit for count in counts]
                axis.plot(counts, curve, "-", color=COLORS[what], alpha=0.5)
            else:
                axis.plot(counts, [point[field] / unit for point in points], "-", color=COLORS[what], alpha=0.5)
        axis.set(xscale="log", yscale="log", xlabel="elements", title=title)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17))  # beside no point
    figure.tight_layout()
    figure.savefig(file, dpi=110, bbox_inches="tight")
    plt.close(figure)


def ratios(rows: list[tuple[str, str, dict[str, float]]], file: Path) -> None:
    """A bar a row, (name, precision, ratio): how many times as fast; with the lowest and highest of the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 1 + 0.24 * len(rows)))
    for place, (_, dtype, ratio) in enumerate(rows):
        spread = [[ratio["median"] - ratio["lowest"]], [ratio["highest"] - ratio["median"]]]
        axis.barh(place, ratio["median"], color=DTYPE_COLORS[dtype], xerr=spread, ecolor="#555555")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=7)
    axis.set(xscale="log", xlabel="times as fast as the other implementation", ylim=(len(rows) - 0.4, -0.6))
    axis.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"], minor=False)
    axis.tick_params(axis="x", which="minor", labelbottom=False)
    axis.legend([plt.Rectangle((0, 0), 1, 1, color=color) for color in DTYPE_COLORS.values()], list(DTYPE_COLORS))
    axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=110, bbox_inches="tight")
    plt.close(figure)
