import os

import pytest

from perceivers import PerceiversError
from perceivers.files import (
    check_count,
    find_files,
    list_folder,
    read_lines,
    read_rows,
    read_text,
    require_file,
    resolve_inside,
)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return path


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert require_file(str(touch(tmp_path / "a"))) == tmp_path / "a"
    assert require_file("~/a") == tmp_path / "a"
    (tmp_path / "link").symlink_to("a")
    assert require_file(tmp_path / "link") == tmp_path / "link"
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "broken").symlink_to("nowhere")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "broken", "/dev/zero", "a\0b", "a" * 5000):
        for read in (require_file, read_text):
            with pytest.raises(PerceiversError, match="is not a readable file: give the path of one"):
                read(path)


def test_find_files_takes_any_case_follows_links_and_passes_over_what_is_hidden(tmp_path, capsys):
    root, other = tmp_path / "root", tmp_path / "other"
    names = ["b/2.PNG", "b/10.png", "a.Png", ".hidden.png", ".hidden/x.png", "__MACOSX/x.png", "b/._2.png"]
    for name in [*names, "b/x.heic", "b/y.heic", "b/note"]:
        touch(root / name)
    touch(other / "c.png")
    (root / "c").symlink_to(other)
    (other / "loop").symlink_to(root)
    (root / "same").symlink_to(root / "b")
    os.mkfifo(root / "fifo.png")
    found = [str(path.relative_to(root)) for path in find_files(root, {".png"}, report=True)]
    assert found == ["a.Png", "b/10.png", "b/2.PNG", "c/c.png", "same/10.png", "same/2.PNG"]
    line = f"Left out of {root}: 7 of 13 files, 4 .heic, 2 without a suffix, 1 that cannot be read.\n"
    assert capsys.readouterr().err == line
    find_files(root, {".png"})
    assert capsys.readouterr().err == ""
    assert [path.name for path in list_folder(root)] == ["a.Png", "b", "c", "fifo.png", "same"]
    with pytest.raises(PerceiversError, match=r"the folder .*none cannot be read: No such file"):
        find_files(tmp_path / "none", {".png"})


def test_names_of_files_do_not_lead_outside(tmp_path):
    assert resolve_inside(tmp_path, "a/../b.png", "row 1") == tmp_path / "a/../b.png"
    for name in ("../b.png", "/etc/passwd", "a/../../b", "a\0b"):
        with pytest.raises(PerceiversError, match=r"^row 1 names the file .* which is outside of"):
            resolve_inside(tmp_path, name, "row 1")


def test_the_limit_can_be_raised(monkeypatch):
    check_count("a.png", 2**26, "pixels")
    with pytest.raises(
        PerceiversError, match=r"a\.png has 67,108,865 pixels, more than 67,108,864: set PERCEIVERS_MAX"
    ):
        check_count("a.png", 2**26 + 1, "pixels")
    monkeypatch.setenv("PERCEIVERS_MAX_VALUES", str(2**26 + 1))
    check_count("a.png", 2**26 + 1, "pixels")
    for value in ("many", "", "-1", "9" * 30):
        monkeypatch.setenv("PERCEIVERS_MAX_VALUES", value)
        with pytest.raises(PerceiversError, match=r"PERCEIVERS_MAX_VALUES = .* is not allowed"):
            check_count("a.png", 1, "pixels")


def test_text_is_utf8_without_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffgrün\x0cx\r\n\r\nb\u2028c\n \n\n".encode())
    assert read_text(path) == "grün\x0cx\r\n\r\nb\u2028c\n \n\n"
    assert read_lines(path) == ["grün\x0cx", "", "b\u2028c"]
    path.write_bytes(b"ab\xff")
    with pytest.raises(PerceiversError, match=r"a.txt is not UTF-8 text: byte 2 is 0xff; save it as UTF-8"):
        read_text(path)


def test_rows_have_the_line_in_which_they_begin():
    text = 'a,b\n\n"x\ny", "z"\n1,2'
    assert list(read_rows(text, "a.csv", skip_blanks=True)) == [(1, ["a", "b"]), (3, ["x\ny", "z"]), (5, ["1", "2"])]
    assert list(read_rows('"a\tb"\n', "a.tsv", "\t", quotes=False)) == [(1, ['"a', 'b"'])]
    with pytest.raises(PerceiversError, match=r"line 2 of a.csv cannot be read"):
        list(read_rows('a\n"b\n', "a.csv"))
