import pytest

from perceivers import PerceiversError
from perceivers.clips.lists import collect_classes, read_classes, read_list

KINETICS = """label,youtube_id,time_start,time_end,split
"riding, a bike",0wR5jVB-WPk,417,427,train
yoga,3caPS4FHFF8,0,10,train
"""
AUDIOSET = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=3, num_segs=3, num_unique_labels=3, num_positive_labels=5
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_,/m/0bt9lr"
--BfvyPmVMo, 20.000, 30.000, "/m/03l9g"
-0SdAVK79lg, 30.000, 40.000, "/m/068hy"
"""
CLASSES = """index,mid,display_name
0,/m/068hy,"Domestic animals, pets"
1,/m/03l9g,Hammer
2,/m/07q6cd_,Squeak
3,/m/0bt9lr,Dog
"""


@pytest.fixture
def write(tmp_path):
    def written(text, name="list.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return written


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def test_the_list_of_kinetics(tmp_path, write):
    clips = read_list(write(KINETICS))
    assert not clips.multilabel
    assert collect_classes(clips) == {"riding, a bike": "riding, a bike", "yoga": "yoga"}
    assert clips.class_indices(collect_classes(clips)) == [(0,), (1,)]
    root = touch(
        tmp_path / "clips", "train/riding a bike/0wR5jVB-WPk_000417_000427.mp4", "3caPS4FHFF8.mkv", "other.mp4"
    )
    files = clips.find_files(root, {".mp4", ".mkv"})
    assert [file.name for file in files] == ["0wR5jVB-WPk_000417_000427.mp4", "3caPS4FHFF8.mkv"]


def test_the_list_of_audioset(tmp_path, write):
    clips, classes = read_list(write(AUDIOSET)), read_classes(write(CLASSES, "classes.csv"))
    assert clips.multilabel
    assert list(classes.values()) == ["Domestic animals, pets", "Hammer", "Squeak", "Dog"]
    assert clips.class_indices(classes) == [(0, 2, 3), (1,), (0,)]
    assert [entry.line for entry in clips.entries] == [4, 5, 6]
    for names in (
        ("--4gqARaEJE.wav", "--BfvyPmVMo.wav", "-0SdAVK79lg.wav"),
        ("Y--4gqARaEJE.wav", "Y--BfvyPmVMo.wav", "Y-0SdAVK79lg.wav"),
        ("--4gqARaEJE_0.000_10.000.wav", "--BfvyPmVMo_20_30.wav", "-0SdAVK79lg_30000.wav"),
        ("a/Y--4gqARaEJE_0_10.wav", "b/--BfvyPmVMo_20000_30000.wav", "-0SdAVK79lg_30.000_40.000.wav"),
    ):
        root = touch(tmp_path / names[0], *names)
        assert [str(file.relative_to(root)) for file in clips.find_files(root, {".wav"})] == list(names)


def test_a_list_of_ones_own_names_files_or_what_they_are_called(tmp_path, write):
    clips = read_list(write('file,labels\na/x.wav,"dog, cat"\ny.wav,\nz,dog\n'))
    assert [entry.labels for entry in clips.entries] == [["dog", "cat"], [], ["dog"]]
    root = touch(tmp_path / "clips", "a/x.wav", "b/x.wav", "b/y.wav", "z.wav", "w.txt")
    assert clips.find_files(root, {".wav"}) == [root / "a/x.wav", root / "b/y.wav", root / "z.wav"]
    assert not read_list(write("file,label\nx.wav,dog\n")).multilabel


def test_a_class_is_unknown_or_a_file_is_missing(tmp_path, write):
    clips, classes = read_list(write(AUDIOSET)), read_classes(write(CLASSES, "classes.csv"))
    del classes["/m/03l9g"]
    with pytest.raises(PerceiversError, match=r"list\.csv, line 5: the class '/m/03l9g' is unknown"):
        clips.class_indices(classes)
    root = touch(tmp_path / "clips", "--4gqARaEJE.wav", "--BfvyPmVMo.txt")
    files = clips.find_files(root, {".wav"})
    assert [file is not None for file in files] == [True, False, False]
    with pytest.raises(PerceiversError, match=r"line 5: there is no clip --BfvyPmVMo_20.* \(2 of 3 are missing\)"):
        clips.find_files(root, {".wav"}, skip_missing=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a list of clips: it needs a header"),
        ("a,b\n1,2\n", "is not a list of clips: it needs a header"),
        ("youtube_id,time_start,time_end,split\nx,0,10,test\n", "is not a list of clips"),
        ("file,label\n", "names no clips"),
        ("file,label\na.wav,dog\nb.wav\n", "line 3 has 1 columns, but file, label are expected"),
        ("file,label\na.wav,dog\nb.wav,\n", "line 3 has no label: give the clip a class"),
        (KINETICS + "yoga,x,zero,10,train\n", "line 4: could not convert string to float: 'zero'"),
        ("# YTID, start_seconds, end_seconds, positive_labels\nx, 0, ten, /m/1\n", "line 2: could not convert"),
    ],
)
def test_what_is_no_list(write, text, message):
    with pytest.raises(PerceiversError, match=message):
        read_list(write(text))


def test_what_cannot_be_read(tmp_path, write):
    with pytest.raises(PerceiversError, match=r"none\.csv is not a readable file"):
        read_list(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PerceiversError, match=r"bytes\.csv is not UTF-8 text: byte 0 is 0xff"):
        read_list(tmp_path / "bytes.csv")
    with pytest.raises(PerceiversError, match=r"line 3: the class 'dog' appears twice"):
        read_classes(write("dog\ncat\ndog\n", "classes.txt"))
