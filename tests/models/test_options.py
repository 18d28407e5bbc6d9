"""Bad values of the constructors' options: a line with name, value, and what is allowed."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ltm_mm.models import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT

NAN, INF = float("nan"), float("inf")
INT, NUMBER, RATE = "must be an int >= 1", "must be a number > 0", "must be a number from 0 to 1"
INTS, FLAG = "must be a list of ints >= 1", "must be True or False"
SIZE, TEXT = r"must be an int >= 1 or two \(height, width\)", "must be a text or None"
LAYER, ARCH = r"must be dict\(type=LAYER, ...\) or None", "unknown arch"
NOT_INTS = (0, -1, 2.0, "2", True, (2,), NAN)
NOT_POSITIVE = (0, 0.0, -1, "a", True, NAN, INF, (4,))
NOT_RATES = (-0.1, 1.5, 2, "0.1", True, NAN, (0.1,))
NOT_LISTS = (2, "2222", (2, 2, 0, 2), (2, 2.0, 6, 2), (True,) * 4, (), [-1] * 4, {2: 2})
NOT_FLAGS = (0, 1, "False", (), 1.0)
NOT_SIZES = (0, -4, 2.5, "224", True, (8,), (8, 0), (8, 8.0), (8, 8, 8))
NOT_TEXTS = (123, "", ["LN"], False)
NOT_LAYERS = ("GELU", 1, [], {}, dict(inplace=True))
NOT_ARCHS = (1, ["tiny"], dict(depths=(2, 2)), "resnet50", "")
NOT_STAGES = ((0.5,), "01", True, (), 1.0, ("1",), (True,), 0, -2, (9,))
NOT_FROZEN = (1.5, "1", True, -2, 99, (1,))

COMMON: dict[str, tuple[tuple, str]] = {
    "in_channels": (NOT_INTS, INT),
    "with_cp": (NOT_FLAGS, FLAG),
    "out_indices": (NOT_STAGES, "must name stages from 0 to"),
    "frozen_stages": (NOT_FROZEN, "must lie in -1.."),
}
FROM_TIMM = {"arch": (NOT_ARCHS, ARCH), "norm_layer": (NOT_TEXTS, TEXT)}
OPTIONS: dict[type[nn.Module], dict[str, tuple[tuple, str]]] = {
    LTMSwin: COMMON
    | dict.fromkeys(("embed_dims", "patch_size", "window_size"), (NOT_INTS, INT))
    | dict.fromkeys(("depths", "num_heads", "strides"), (NOT_LISTS, INTS))
    | dict.fromkeys(("drop_rate", "attn_drop_rate", "drop_path_rate"), (NOT_RATES, RATE))
    | dict.fromkeys(("mlp_ratio", "qk_scale"), (NOT_POSITIVE, NUMBER))
    | dict.fromkeys(("qkv_bias", "patch_norm"), (NOT_FLAGS, FLAG))
    | dict.fromkeys(("use_abs_pos_embed", "convert_weights"), (NOT_FLAGS, FLAG))
    | dict.fromkeys(("act_cfg", "norm_cfg"), (NOT_LAYERS, LAYER))
    | {"pretrained": (NOT_TEXTS, TEXT), "pretrain_img_size": (NOT_SIZES, SIZE)}
    | {"arch": (NOT_ARCHS, ARCH), "detail": ((123, 1.0, ["a.pth"]), "must be None, True or a")},
    LTMViT: COMMON
    | FROM_TIMM
    | dict.fromkeys(("patch_size", "embed_dims", "num_layers", "num_heads"), (NOT_INTS, INT))
    | {"img_size": (NOT_SIZES, SIZE), "drop_path_rate": (NOT_RATES, RATE)}
    | dict.fromkeys(("simple_pyramid", "final_norm"), (NOT_FLAGS, FLAG)),
    LTMMobileViT: COMMON
    | FROM_TIMM
    | {"drop_path_rate": (NOT_RATES, RATE), "norm_eval": (NOT_FLAGS, FLAG)},
    LTMEfficientViT: COMMON
    | FROM_TIMM
    | {"window_size": (NOT_INTS, INT), "norm_eval": (NOT_FLAGS, FLAG)},
}
SMALL = {
    LTMSwin: dict(embed_dims=8, num_heads=(1, 1, 1, 1)),
    LTMViT: dict(arch="tiny", embed_dims=24, num_layers=2, num_heads=2),
    LTMMobileViT: dict(arch="xxs"),
    LTMEfficientViT: dict(arch="b0"),
}
ROWS = [(kind, name) for kind, options in OPTIONS.items() for name in options]


@pytest.mark.parametrize(("kind", "name"), ROWS, ids=lambda x: getattr(x, "__name__", x))
def test_bad_values_get_one_clear_line(kind: type[nn.Module], name: str) -> None:
    values, allowed = OPTIONS[kind][name]
    for value in values:
        with pytest.raises(ValueError, match=allowed) as error:
            kind(**{**SMALL[kind], name: value})
        line = str(error.value)
        assert name in line, value
        assert repr(value) in line, value
        assert "\n" not in line, value


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (LTMSwin, dict(norm_cfg=dict(type="Foo")), r"norm_cfg={'type': 'Foo'} names no layer: "),
        (LTMSwin, dict(norm_cfg=dict(type="LN", foo=1)), r"norm_cfg={.*} names no layer: .*foo"),
        (LTMSwin, dict(act_cfg=dict(type="Foo")), r"act_cfg={'type': 'Foo'} names no layer: "),
        (LTMSwin, dict(depths=(2, 2), strides=(4,)), "depths, num_heads and strides must have"),
        (LTMViT, dict(embed_dims=25), "arch 'tiny' cannot be built: dim should be divisible by"),
        (LTMViT, dict(norm_layer="Foo"), "norm_layer must name a layer of mmengine's registry"),
    ],
)
def test_values_that_do_not_fit_each_other(
    kind: type[nn.Module], options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        kind(**{**SMALL[kind], **options})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (LTMSwin, dict(drop_rate=0, attn_drop_rate=1, drop_path_rate=1.0, mlp_ratio=2)),
        (LTMSwin, dict(mlp_ratio=0.01, qk_scale=None, num_heads=[1] * 4, out_indices=[-1])),
        (LTMSwin, dict(pretrain_img_size=[64, 96], use_abs_pos_embed=True, out_indices=2)),
        (LTMSwin, dict(strides=[4, 1, 1, 3], qkv_bias=False, norm_cfg=dict(type="LN", eps=1e-6))),
        (LTMViT, dict(img_size=[64, 96], drop_path_rate=1, norm_layer="LN")),
        (LTMMobileViT, dict(drop_path_rate=1.0, in_channels=3)),
    ],
)
def test_what_lies_at_the_edge_is_taken_and_runs(kind: type[nn.Module], options: dict) -> None:
    model = kind(**{**SMALL[kind], **options}).train()
    maps = model(torch.randn(2, 3, 64, 96))
    assert all(m.isfinite().all() for m in maps)


def test_a_learned_file_may_be_a_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"learned\.pth"):
        LTMSwin(**SMALL[LTMSwin], detail=tmp_path / "learned.pth")
