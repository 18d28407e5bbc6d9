"""Depths of parameters, which mmpretrain's layer-wise decay of learning rates goes by."""

import pytest

from ltm_mm.models import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT

TINY = dict(embed_dims=16, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8))


def test_as_mmpretrains_swin():
    from mmpretrain.models import SwinTransformer

    arch = dict(embed_dims=16, depths=[2, 2, 4, 2], num_heads=[1, 2, 4, 8])
    theirs = SwinTransformer(arch=arch, out_indices=(0, 1, 2, 3))
    mine = LTMSwin(**TINY, keep=9, detail=True)
    names = {f"backbone.{name}" for name, _ in mine.named_parameters()}
    shared = names & {f"backbone.{name}" for name, _ in theirs.named_parameters()}
    assert len(shared) > 100
    for name in (*shared, "head.fc.weight"):
        depth = mine.get_layer_depth(name, "backbone.")
        assert depth == theirs.get_layer_depth(name, "backbone."), name
    own = mine.get_layer_depth("stages.2.blocks.3.merge.detail.up.weight")
    assert own == mine.get_layer_depth("stages.2.blocks.3.norm1.weight") == (8, 12)


@pytest.mark.parametrize(
    ("model", "depths"),
    [
        (
            LTMViT("tiny", None, num_layers=3, embed_dims=24, num_heads=2, final_norm=True),
            {"pos_embed": 0, "patch_embed.proj.weight": 0, "blocks.2.mlp.fc1.bias": 3}
            | {"norm.weight": 4},
        ),
        (
            LTMMobileViT("xxs"),
            {"stem.conv.weight": 0, "stages.0.0.conv1_1x1.conv.weight": 1}
            | {"stages.4.1.transformer.2.norm1.weight": 10, "final_conv.conv.weight": 11},
        ),
        (
            LTMEfficientViT("b0"),
            {"stem.in_conv.conv.weight": 0, "stages.0.blocks.0.main.point_conv.conv.weight": 1}
            | {"stages.3.blocks.2.local_module.main.point_conv.conv.weight": 10},
        ),
    ],
)
def test_of_the_other_backbones(model, depths):
    assert depths.keys() <= {name for name, _ in model.named_parameters()}
    found = {name: model.get_layer_depth(name) for name in depths}
    assert {name: depth for name, (depth, _) in found.items()} == depths
    names = [name for name, _ in model.named_parameters()]
    deepest = max(model.get_layer_depth(name)[0] for name in names)
    counts = {model.get_layer_depth(name)[1] for name in names}
    assert len(counts) == 1
    assert deepest <= counts.pop() - 1
    assert {model.get_layer_depth(name)[0] for name in names} == set(range(deepest + 1))
