"""Each service answers as the command or function of its task does."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from perceivers import PerceiversError
from perceivers.clips.reconstruct import autoencode
from perceivers.data.video import read_frames
from perceivers.flow.estimate import BUNDLED_MODEL, estimate_flow
from perceivers.flow.files import read_flow
from perceivers.flow.pictures import draw_flow
from perceivers.images.classify import classify_image
from perceivers.model.intermediates import record_attention
from perceivers.serving.attention import answer_with_attention
from perceivers.serving.server import find_bundled_model
from perceivers.serving.service import open_service
from perceivers.text.classify import classify_text
from perceivers.text.fill_mask import fill_mask
from tests.support.models import classifier, coder, hearer, labels, language, optical
from tests.support.serving import client, draw_picture, encode, serve
from tests.support.tables import as_rows, cells_of_all_types, learned, small_model, write, write_clip, write_picture


def by_name(classes):
    return {row["name"]: row["probability"] for row in classes}


def close(row):
    return {name: pytest.approx(cell, rel=1e-4) if isinstance(cell, float) else cell for name, cell in row.items()}


def decode_png(text):
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        return np.asarray(image)


def png_of_size(width, height):
    """A PNG file that announces a size, with almost no content."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("settings", [{"crop": 0.5}, {"mean": [0.3], "std": [0.2]}], ids=["colors", "gray"])
def test_pictures_are_classified_as_files_are(settings, tmp_path):
    model, content = classifier(**settings), draw_picture(1, 30, 20)
    (tmp_path / "a.png").write_bytes(content)
    (expected,) = classify_image(model, [tmp_path / "a.png"])
    with serve(model, tmp_path / "model") as api:
        answer = api.post("/predict", json={"picture": encode(content), "top": 10}).json()
        assert by_name(answer["classes"]) == pytest.approx(expected, rel=1e-4)
        assert [row["name"] for row in answer["classes"]] == list(expected)
        assert (answer["seen"], answer["attention"]) == (None, None)
        two = api.post("/predict", json={"picture": encode(content), "top": 2}).json()["classes"]
        assert [row["name"] for row in two] == list(expected)[:2]
        assert api.get("/model").json()["classes"] == list("0123456789")


KINDS = {
    "pixels": {},
    "patches": {"patch_size": 4},
    "conv": {"preprocessing": "conv"},
    "average": {"decoder": "average"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_drawn_over_what_the_model_sees(kind, tmp_path):
    model = classifier(crop=1.0, **KINDS[kind])
    content = draw_picture(2, 12, 12)
    with serve(model, tmp_path) as api:
        answer = api.post("/predict", json={"picture": encode(content), "attention": True}).json()
        plain = api.post("/predict", json={"picture": encode(content)}).json()
    assert by_name(answer["classes"]) == pytest.approx(by_name(plain["classes"]), rel=1e-3)
    seen, attention = decode_png(answer["seen"]), decode_png(answer["attention"])
    assert (seen == np.asarray(Image.open(io.BytesIO(content)))).all()
    image = torch.from_numpy(seen.copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        _, weight_BM = answer_with_attention(model, {"image": image}, {"label": None})
    grid = model.inputs["image"].features.grid(12, 12)
    assert attention.shape == (*grid, 4)
    assert (attention[..., :3] == (255, 96, 0)).all()
    relative = (weight_BM[0] / weight_BM.max()).view(grid).numpy()
    assert np.abs(attention[..., 3] / 255 - relative).max() < 0.003
    assert attention[..., 3].max() == 255


def test_attention_is_the_product_of_both_attentions_averaged_over_heads():
    model = classifier()
    images = torch.rand(2, 3, 12, 12)
    with torch.no_grad(), record_attention(model) as maps:
        expected = model({"image": images})["label"]
    with torch.no_grad():
        answers, weight_BM = answer_with_attention(model, {"image": images}, {"label": None})
    torch.testing.assert_close(answers["label"], expected, rtol=1e-3, atol=1e-3)
    (reads,), (queries,) = maps["encoder.cross_attentions.0.attention"], maps["decoder.attention"]
    product = torch.einsum("bhpn,bgnm->bm", queries, reads) / (queries.shape[1] * queries.shape[2] * reads.shape[1])
    torch.testing.assert_close(weight_BM, product)
    torch.testing.assert_close(weight_BM.sum(1), torch.ones(2))
    assert weight_BM.shape == (2, 144)
    assert not torch.allclose(weight_BM[0], weight_BM[1])


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", "the picture cannot be decoded as an image."),
        (b"GIF89a", "the picture cannot be decoded as an image."),
        (draw_picture(0)[:60], "the picture cannot be decoded as an image."),
        (png_of_size(8000, 8000), "the picture has too many pixels: send at most 33,554,432."),
        (png_of_size(100_000, 100_000), "the picture has too many pixels: send at most 33,554,432."),
    ],
    ids=["empty", "header", "truncated", "large", "bomb"],
)
def test_pictures_that_cannot_be_read(content, error, tmp_path):
    with serve(classifier(), tmp_path) as api:
        answer = api.post("/predict", json={"picture": encode(content)})
        assert (answer.status_code, answer.json()) == (422, {"error": error})
        for wrong in ("not base64!", "äöü", 5):
            answer = api.post("/predict", json={"picture": wrong})
            assert "picture: Value error, it must be the content of a file in base64" in answer.json()["error"]


def test_flow_is_that_of_the_command(tmp_path):
    model = optical()
    first, second = draw_picture(1, 30, 40), draw_picture(2, 30, 40)
    for name, content in (("1.png", first), ("2.png", second)):
        (tmp_path / name).write_bytes(content)
    flow_2YX = estimate_flow(model, tmp_path / "1.png", tmp_path / "2.png")
    frames = {"frame1": encode(first), "frame2": encode(second)}
    with serve(model, tmp_path / "model") as api:
        answer = api.post("/predict", json={**frames, "flow": True, "max_flow": 9}).json()
        (tmp_path / "flow.flo").write_bytes(base64.b64decode(answer["flow"]))
        torch.testing.assert_close(read_flow(tmp_path / "flow.flo")[0], flow_2YX, rtol=1e-4, atol=1e-5)
        expected = draw_flow(flow_2YX, 9).permute(1, 2, 0).numpy()
        assert np.abs(decode_png(answer["picture"]).astype(int) - expected).max() <= 1
        assert answer["mean"] == pytest.approx(float(flow_2YX.norm(dim=0).mean()), rel=1e-4)
        assert answer["max"] == pytest.approx(float(flow_2YX.norm(dim=0).max()), rel=1e-4)
        assert api.get("/model").json()["limits"]["max_batch"] == 1
        frames["frame2"] = encode(draw_picture(2, 30, 44))
        error = api.post("/predict", json=frames).json()["error"]
        assert error.startswith("the frames differ in size, 40 x 30 pixels and 44 x 30 pixels")
        frames["frame2"] = encode(png_of_size(2000, 1100))
        error = api.post("/predict", json=frames).json()["error"]
        assert error == "the second frame has too many pixels: send at most 2,097,152."


def test_without_a_model_the_bundled_one_is_served_with_an_example():
    assert find_bundled_model() == BUNDLED_MODEL
    with client(open_service(BUNDLED_MODEL, "cpu")) as api:
        example = api.get("/example").json()
        answer = api.post("/predict", json=example).json()
    assert set(example) == {"frame1", "frame2"}
    assert decode_png(answer["picture"]).shape == (240, 320, 3)
    assert 1.0 < answer["mean"] < 2.0  # pixels; the scene's own is 1.55
    assert answer["flow"] is None


def test_masks_are_filled_as_by_the_command_also_in_a_batch(tmp_path):
    model = language()
    texts = ["ab[MASK*2]c", "a longer text[MASK] of it", "[MASK*5]"]
    service = serve_masks(model, tmp_path)
    items = [service.read(service.request(text=text, top=top)) for text, top in zip(texts, (2, 4, 1), strict=True)]
    for text, item, answer in zip(texts, items, service.compute(items), strict=True):
        expected = fill_mask(model, text, item.request.top)
        assert (answer.text, answer.masked, answer.attention) == (expected.text, expected.masked, None)
        for found, candidates in zip(answer.candidates, expected.candidates, strict=True):
            assert {row.name: row.probability for row in found} == pytest.approx(candidates, rel=1e-3)
    (answer,) = service.compute([service.read(service.request(text="é[MASK]", attention=True))])
    assert [part.text for part in answer.attention] == ["é", "[MASK]"]
    assert sum(part.weight for part in answer.attention) == pytest.approx(1, rel=1e-4)


def serve_masks(model, folder):
    model.save(folder)
    return open_service(folder, "cpu")


def test_texts_are_classified_as_by_the_command_also_in_a_batch(tmp_path):
    model = labels({"topic": 3, "grade": 1}, {"topic": ["art", "law", "sea"]})
    texts = [("short", None, "topic"), ("a longer text", "its pair", "grade"), ("another", None, "topic")]
    service = serve_masks(model, tmp_path)
    items = [service.read(service.request(text=a, second=b, task=task)) for a, b, task in texts]
    for (first, second, task), answer in zip(texts, service.compute(items), strict=True):
        (expected,) = classify_text(model, [first if second is None else (first, second)], task)
        if task == "grade":
            assert answer.score == pytest.approx(expected["score"], rel=1e-3)
            assert answer.classes is None
        else:
            assert {row.name: row.probability for row in answer.classes} == pytest.approx(expected, rel=1e-3)
    with pytest.raises(PerceiversError, match="name one of the model's tasks as task: topic, grade"):
        service.read(service.request(text="a"))
    with pytest.raises(PerceiversError, match="text 1 is empty"):
        service.read(service.request(text=" ", task="topic"))
    (answer,) = service.compute([service.read(service.request(text="words", task="topic", attention=True))])
    assert "".join(part.text for part in answer.attention).endswith("words")
    assert sum(part.weight for part in answer.attention) == pytest.approx(1, rel=1e-4)


TABLE = {
    "size": ("number", [1.5, 2, 7]),
    "color": ("category", ["red", "green", "blue"]),
    "year": ("category", [2001, 2002, 2003]),
    "sold": ("yes_no", ["yes", "no", "yes"]),
    "tags": ("categories", ["a, b", "b", "c, a"]),
}


def test_rows_of_a_table_are_predicted_as_by_the_command(tmp_path):
    columns = {name: learned(kind, cells) for name, (kind, cells) in TABLE.items()}
    model = small_model(columns, {"weight": learned("number", [1, 5, 9]), "kind": learned("category", ["x", "y", "x"])})
    rows = as_rows({name: cells[1:] for name, (_, cells) in TABLE.items()})
    expected = write(model, rows)
    with serve(model, tmp_path) as api:
        row = {"size": 2, "color": "green", "year": 2002, "sold": "no", "tags": ["b"]}
        answer = api.post("/predict", json=row).json()
        assert answer["predictions"] == close(expected[0])
        kinds = by_name(answer["classes"]["kind"])
        assert set(kinds) == {"x", "y"}
        assert kinds[expected[0]["kind_predicted"]] == pytest.approx(expected[0]["kind_probability"], rel=1e-4)
        partial = api.post("/predict", json={"size": 2, "color": None})
        assert partial.json()["predictions"]["weight_predicted"] != pytest.approx(
            expected[0]["weight_predicted"], rel=1e-4
        )
        assert "the row is empty: give one of its columns, size, color" in api.post("/predict", json={}).json()["error"]
        assert api.post("/predict", json={"size": "wide"}).status_code == 422
        error = api.post("/predict", json={"sold": "perhaps"}).json()["error"]
        assert error == "row 0 of the request, column 'sold': 'perhaps' is not yes or no."
        example = api.get("/example").json()
        assert (example["color"], example["sold"]) == ("blue", "no")
        assert api.post("/predict", json=example).status_code == 200
        fields = api.get("/model").json()["request"]["properties"]
        assert fields["color"]["names"] == ["blue", "green", "red"]


def test_files_of_a_row_come_with_the_request_and_never_from_the_server(tmp_path):
    kinds = cells_of_all_types(tmp_path / "files")
    settings, cells = kinds["image"]
    columns = {"photo": learned("image", cells, tmp_path / "files", **settings), "size": learned("number", [1, 2, 3])}
    model = small_model(columns, {"weight": learned("number", [1, 5, 9])})
    path = write_picture(tmp_path / "a.png", 5)
    (expected,) = write(model, as_rows({"photo": [str(path)]}))
    with serve(model, tmp_path / "model") as api:
        answer = api.post("/predict", json={"photo": encode(path.read_bytes())}).json()
        assert answer["predictions"] == pytest.approx(expected, rel=1e-4)
        refused = api.post("/predict", json={"photo": str(path)})
        assert refused.status_code == 422
        assert "photo: Value error, it must be the content of a file in base64" in refused.json()["error"]
        looks_like = api.post("/predict", json={"photo": encode(str(path).encode())})
        assert "cannot be decoded as an image" in looks_like.json()["error"]


def test_clips_are_reconstructed_as_by_the_command(tmp_path):
    model, clip = coder(), write_clip(tmp_path / "clip.mkv", 3)
    expected = autoencode(model, clip)
    with serve(model, tmp_path / "model") as api:
        answer = api.post("/predict", json={"clip": encode(clip.read_bytes())}).json()
        assert answer["video_psnr"] == pytest.approx(expected.video_psnr, rel=1e-4)
        assert answer["audio_psnr"] is None  # the clip has no sound
        assert by_name(answer["classes"]) == pytest.approx(dict(list(expected.classes.items())[:5]), rel=1e-3)
        (tmp_path / "out.mp4").write_bytes(base64.b64decode(answer["video"]))
        frames = list(read_frames(tmp_path / "out.mp4").frames)
        assert len(frames) == 4
        assert frames[0].shape == (3, 16, 32)
        assert abs(frames[0][:, :, 16:].float().mean() / 255 - expected.video[0].mean()) < 0.05
        damaged = api.post("/predict", json={"clip": encode(clip.read_bytes()[:100])})
        assert damaged.status_code == 422
        assert damaged.json()["error"].startswith("the clip ")
        assert str(tmp_path) not in damaged.text


def test_a_playlist_which_may_name_files_of_the_server_is_not_opened(tmp_path):
    write_clip(tmp_path / "secret.mp4", 3)
    with serve(coder(), tmp_path / "model") as api:
        for text in (
            f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/secret.mp4\n",
            f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n",
        ):
            answer = api.post("/predict", json={"clip": encode(text.encode())})
            assert answer.status_code == 422
            assert answer.json()["error"].startswith("the clip is not a video in MP4")


def test_a_model_without_a_service(tmp_path):
    hearer().save(tmp_path)
    with pytest.raises(
        PerceiversError, match="this PerceiverIO cannot be served: there are services to autoencode, classify-image"
    ):
        open_service(tmp_path, "cpu")
