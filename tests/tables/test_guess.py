"""Types of columns are guessed: each rule on a table made for it, and the tables of the benchmark."""

import numpy as np
import pytest

from perceivers.data.tables import Table
from perceivers.errors import PerceiversError
from perceivers.tables.data import open_tables
from perceivers.tables.guess import guess_columns
from tests.support.tables import write_clip, write_picture, write_sound

random = np.random.default_rng(0)
NUMBERS = random.normal(size=40).tolist()
TEXTS = [
    " ".join(random.choice(["two", "people", "meet", "by", "chance", "and", "never", "tell"], 8)) for _ in range(40)
]
CODES = [f"{number:05d}" for number in random.choice([1234, 94105, 10001], 40)]


def guess(cells, name="x", predict=(), **other):
    columns = {name: cells, **other}
    table = Table("t.csv", columns, "line", range(2, 2 + len(cells)))
    return next(found for found in guess_columns(table, predict) if found.name == name)


@pytest.mark.parametrize(
    ("kind", "cells"),
    [
        ("number", NUMBERS),
        ("number", [f"{number:.3f}" for number in NUMBERS]),
        ("number", ["", "NA", *map(str, NUMBERS)]),
        ("number", [*range(0, 80, 2)]),  # whole, but with no name of an identifier
        ("number", ["1,200", "3,450,000"] * 20),
        ("category", ["red", "green", "blue", "blue"] * 10),
        ("category", ["red", "green"] * 2),
        ("yes_no", ["Yes", "no"] * 20),
        ("yes_no", ["0", "1", ""] * 20),
        ("yes_no", [True, False] * 20),
        ("yes_no", [1.0, 0.0, None] * 20),
        ("categories", ["Drama, Comedy", "Drama", "War, Comedy", "War", "Drama, War"] * 8),
        ("categories", [f"{a}|{b}" for a in "abcdef" for b in "ghijkl"]),
        ("categories", [["a", "b"], ["b"], []] * 9),
        ("categories", ['["a", "b"]', '["c"]'] * 9),
        ("text", TEXTS),
        ("date", [f"2024-{1 + row % 12:02d}-{1 + row % 28:02d}" for row in range(40)]),
        ("date", ["31/12/2023 10:00", "01/02/2024 23:59", "2/3/2024 1:00"] * 5),
        ("date", [f"2024-01-01T{row % 24:02d}:00:00+02:00" for row in range(40)]),
        ("image", [f"{row}.PNG" for row in range(40)]),
        ("image", [*(f"{row}.jpg" for row in range(40)), "no picture"]),
        ("image", [{"bytes": b"x", "path": None}] + [{"bytes": b"y", "path": "1.png"}] * 3),
        ("image", ["data:image/png;base64,AAAA", "data:image/png;base64,BBBB"] * 3),
        ("sound", [f"sounds/{row}.wav" for row in range(40)]),
        ("sound", [{"path": f"{row}.mp3"} for row in range(5)]),
        ("video", [f"{row}.mp4" for row in range(40)]),
        ("array", [f"{row}.npy" for row in range(40)]),
        ("array", [[1, 2, 3], [4, 5, 6]] * 9),
        ("array", ["[[1, 2], [3, 4]]", "[[5, 6], [7, 8]]"] * 9),
        ("array", [np.zeros(3), np.ones(3)]),
        ("series", [[1, 2, 3], [4, 5]] * 9),
        ("series", ["[1, 2.5]", "[3]"] * 9),
    ],
)
def test_types(kind, cells):
    assert guess(cells).type == kind


@pytest.mark.parametrize(
    ("name", "cells", "reason"),
    [
        ("x", ["", None, "NA"], "empty"),
        ("x", ["same"] * 30, "constant: same"),
        ("x", [3.0, 3, "3", None], "constant: 3"),
        ("x", [*range(1, 41)], "an identifier of the rows"),  # it counts
        ("CustomerId", random.permutation(40).tolist(), "an identifier of the rows"),
        ("RowNumber", [*range(40)], "an identifier of the rows"),
        ("", random.permutation(40).tolist(), "an identifier of the rows"),
        ("x", [f"u{number:04x}" for number in random.permutation(4000)[:40]], "an identifier of the rows"),
    ],
)
def test_columns_that_say_nothing_are_left_out(name, cells, reason):
    found = guess(cells, name)
    assert (found.type, found.reason) == (None, reason)
    with pytest.raises(PerceiversError, match=f"the column '{name}' cannot be predicted: it is {reason}"):
        guess(cells, name, predict=[name])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("zipcode", "category"),
        ("ZIP", "category"),
        ("shop_id", "category"),
        ("area code", "category"),
        ("rooms", "number"),
    ],
)
def test_codes_have_no_order(name, kind):
    assert guess(CODES, name).type == kind


@pytest.mark.parametrize(
    ("kind", "cells"),
    [
        ("category", ["3", "1", "2"] * 10),
        ("number", [*range(0, 80, 2)]),
        ("number", [1, 2, 3, 4]),  # too few of each
        ("number", [0.5, 1.5] * 20),
        ("yes_no", ["0", "1"] * 20),
    ],
)
def test_whole_numbers_to_predict(kind, cells):
    """A few are categories; as an input they are numbers."""
    assert guess(cells, predict=["x"]).type == kind
    if kind == "category":
        assert guess(cells).type == "number"


def test_the_example_is_short():
    cells = ["a long text of many words " * 9, "another " * 30]
    assert guess(cells).reason.startswith("a long text of ma")
    assert len(guess(cells).reason) <= 40


@pytest.mark.parametrize(
    ("cells", "kind"), [(TEXTS, "text"), ([f"2024-01-{1 + row % 28:02d}" for row in range(40)], "date")]
)
def test_types_that_cannot_be_predicted(cells, kind):
    with pytest.raises(PerceiversError, match=f"cannot be predicted: a column of type {kind} has no fixed answers"):
        guess(cells, predict=["x"])


def test_columns_that_are_not_there():
    table = Table("t.csv", {"price": [1, 2], "size": [3, 4]}, "line", [2, 3])
    for predict, ignore in ((["prise"], []), (["price"], ["prise"])):
        with pytest.raises(PerceiversError, match=r"t.csv has no column 'prise': did you mean 'price'"):
            guess_columns(table, predict, ignore)
    assert [found.reason for found in guess_columns(table, ["price"], ["size"])][1] == "ignored"


@pytest.mark.parametrize("suffix", ["png", "jpg", "wav", "mkv", "npy"])
@pytest.mark.parametrize("has_dicts", [False, True])
def test_contents_of_files(tmp_path, suffix, has_dicts):
    """They are told by how they begin, and are not constant because they begin alike."""
    for seed in (0, 1):
        write_picture(tmp_path / f"{seed}.png", seed)
        write_picture(tmp_path / f"{seed}.jpg", seed)
        write_sound(tmp_path / f"{seed}.wav", seed)
        write_clip(tmp_path / f"{seed}.mkv", seed)
        np.save(tmp_path / f"{seed}.npy", np.append(np.zeros(500), seed))
    cells = [(tmp_path / f"{seed}.{suffix}").read_bytes() for seed in (0, 1, 0)]
    kind = {"png": "image", "jpg": "image", "wav": "sound", "mkv": "video", "npy": "array"}[suffix]
    assert guess([{"bytes": cell, "path": None} for cell in cells] if has_dicts else cells).type == kind


def test_lists_that_begin_alike_are_not_constant():
    zeros = [0.0] * 2000
    assert guess([[*zeros, 1], [*zeros, 2]]).type == "array"
    assert guess([np.array([*zeros, 1, *zeros]), np.array([*zeros, 2, *zeros])]).type == "array"
    assert guess([zeros, zeros]).reason.startswith("constant")
    assert guess([np.zeros(3), np.zeros(3)]).reason.startswith("constant")


def test_deep_json_is_text():
    assert guess(["[" * 100_000, "[1]"]).type is not None


REAL = {
    "seaborn/titanic.csv": (
        "survived",
        {"survived": "yes_no", "pclass": "number", "sex": "category", "age": "number", "alone": "yes_no"},
    ),
    "churn/churn.csv": (
        "Exited",
        {"RowNumber": None, "CustomerId": None, "Geography": "category", "Balance": "number", "Exited": "yes_no"},
    ),
    "movies/movies.csv": (
        "Rating",
        {"Genre": "categories", "Description": "text", "Actors": "text", "Votes": "number", "Rating": "number"},
    ),
    "clothes/reviews.csv": (
        "Recommended IND",
        {"": None, "Review Text": "text", "Title": "text", "Class Name": "category", "Recommended IND": "yes_no"},
    ),
    "houses/train.csv": (
        "price",
        {"frontal": "image", "bathroom": "image", "bathrooms": "number", "zipcode": "category", "price": "number"},
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_tables(shared_data, name):
    path = shared_data / "tables" / name
    if not path.exists():
        pytest.skip(f"needs the table {path}")
    target, types = REAL[name]
    found = {guess.name: guess.type for guess in guess_columns(open_tables(str(path))[None], [target])}
    assert {column: found[column] for column in types} == types
