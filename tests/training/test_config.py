"""Values of a config that have the wrong type: one sentence with the field, the value and what is expected."""

import pytest

from perceivers.config_files import find_config_file
from perceivers.errors import PerceiversError
from perceivers.training.config import read_config


@pytest.mark.parametrize(
    ("config", "override", "expected"),
    [
        (
            "digits",
            "--training.batch_size=many",
            "training.batch_size = 'many' {}: it must be of type int, at least 1.",
        ),
        ("digits", "--optimization.lr=x", "optimization.lr = 'x' {}: it must be of type float, above 0."),
        ("digits", "--data.path=[1]", "data.path = [1] {}: it must be of type str."),
        ("digits", "--model.latents=[1, 2]", "model.latents = [1, 2] {}: it must be of type int, at least 1."),
        ("digits", "--model.lora.rank=x", "model.lora.rank = 'x' {}: it must be of type int, at least 0."),
        ("digits", "--augmentation.area=1", "augmentation.area = 1 {}: it must be of type tuple[float, float]."),
        ("digits", "--training.resume=maybe", "training.resume = 'maybe' {}: it must be of type bool or 'auto'."),
        ("digits", "--data=3", "data = 3, but it has fields: path, validation_fraction, image_column, label_column."),
        ("classify", "--data.text=Review", "data.text = 'Review' {}: it must be of type list[str]."),
        ("flow/mini", "--data.scenes.size=x", "data.scenes.size = 'x' {}: it must be of type tuple[int, int]."),
        ("mlm_bytes_mini", "--model.ngrams=3", "ngrams = 3 {}: it must be of type tuple[int, int], each at least 1."),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_what_is_expected(config, override, expected):
    with pytest.raises(PerceiversError) as caught:
        read_config(find_config_file(config), [override])
    assert str(caught.value).endswith(expected.format("is not allowed"))
    assert "\n" not in str(caught.value)
