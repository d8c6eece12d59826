"""The examples in docstrings of public names run, and give what they say."""

import doctest

import pytest

import perceivers
import perceivers.adapters

PUBLIC = {name: getattr(module, name) for module in (perceivers, perceivers.adapters) for name in module.__all__}
NO_EXAMPLE = {"Encoded", "Model"}
"""What `encode` returns, and the base of what is built: their examples are at PerceiverIO."""


@pytest.mark.parametrize("name", [name for name in PUBLIC if name not in NO_EXAMPLE])
def test_the_examples_of_a_public_name_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    thing = PUBLIC[name]
    test = doctest.DocTestParser().get_doctest(thing.__doc__, {name: thing}, name, None, 0)  # all else is imported
    assert test.examples, f"{name} has no example"
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
