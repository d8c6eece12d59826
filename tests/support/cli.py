import pytest

from perceivers.cli import main


def fails(capsys, *argv):
    """The one sentence that a command ends in."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("perceivers: ")
    assert err.count("\n") == 1, err
    return err
