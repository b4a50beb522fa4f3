"""What a stage's help teaches."""

import pytest

from heatproof import config
from heatproof.stages.registry import STAGES
from tests.end_to_end.conftest import heatproof


@pytest.mark.parametrize("name", STAGES)
def test_the_help_of_a_stage_names_each_key_of_its_section(name, capsys):
    assert heatproof(name, "--help") == 0
    shown = capsys.readouterr().out
    for key, default, told in config.keys(STAGES[name].section):
        assert f"    {key}: {default}".rstrip() in shown
        assert told in shown


def test_it_tells_defaults_and_meanings(capsys):
    assert heatproof("train-masker", "--help") == 0
    shown = capsys.readouterr().out
    assert "    taps: (needed)    # layers of the classifier that the masker reads, as in named_modules()\n" in shown
    assert "    share: 0.2    # of the training images in one epoch, drawn anew for each" in shown
