"""Weights that a backbone starts from: the forms that are taken, and those that are refused."""

from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import PretrainedInit

from ltm_mm.models.backbones.base import checked_init_cfg
from ltm_mm.models.backbones.swin import LTMSwin

FORM = dict(type="Pretrained", checkpoint="a.pth")
OPTIONS = dict(prefix="backbone.", trust=True)
TINY = dict(embed_dims=8, depths=(1, 1), num_heads=(1, 1), strides=(4, 2), out_indices=(0, 1))


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (None, None),
        (FORM, FORM),
        (ConfigDict(FORM), FORM),
        ("a.pth", FORM),
        (Path("a.pth"), FORM),
        (dict(type=PretrainedInit, checkpoint=Path("a.pth")), FORM),
        (FORM | OPTIONS, FORM | OPTIONS),
    ],
)
def test_forms(given: object, read: dict | None) -> None:
    assert checked_init_cfg(given) == read


@pytest.mark.parametrize(
    "given",
    [
        123,
        ["x"],
        [FORM],
        {},
        "",
        True,
        dict(type="Pretrained"),
        dict(type="Pretrained", checkpoint=None),
        dict(type="Pretrained", checkpoint=["a.pth"]),
        dict(checkpoint="a.pth"),
        {**FORM, "prefixx": "backbone."},
        dict(type="Xavier"),
    ],
)
def test_what_names_no_weights(given: object) -> None:
    with pytest.raises(ValueError, match="init_cfg must be None, a file or an address") as error:
        LTMSwin(**TINY, init_cfg=given)
    assert repr(given) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_alone_is_loaded(tmp_path: Path) -> None:
    source, file = LTMSwin(**TINY), tmp_path / "a.pth"
    torch.nn.init.normal_(source.patch_embed.projection.weight)
    torch.save(source.state_dict(), file)
    model = LTMSwin(**TINY, init_cfg=str(file))
    model.init_weights()
    torch.testing.assert_close(dict(model.state_dict()), dict(source.state_dict()))
