"""Merge maps follow the groups: synthetic groups, pixel by pixel, and those of real models."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from ltm_mm.merging import record_merges
from ltm_mm.models.backbones import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT
from ltm_mm.visualization.merge_map import (
    BlockGroups,
    View,
    choose_blocks,
    draw_merge_map,
    map_scale,
    mean_colours,
    merge_groups_of,
    outlines,
)
from ltm_mm.visualization.panels import Scene, block_title, merge_map_figure, shared_figure

PLAN = (None, (None, 25), (25, 25, 9, 9, 9, 9), None)


def synthetic(grid: tuple[int, int], count: int, stride: int) -> BlockGroups:
    """Tokens in groups at random."""
    numbers = np.random.default_rng(0).integers(0, count, grid)
    return BlockGroups("stages.0.blocks.1", numbers, stride)


@pytest.mark.parametrize(
    ("grid", "stride", "image", "resized"),
    [
        ((10, 13), 4, (40, 52), (40, 52)),  # every pixel has its token
        ((9, 11), 4, (33, 41), (33, 41)),  # the last tokens stand for part of a patch
        ((20, 24), 4, (33, 52), (66, 93)),  # enlarged, and padding beyond 66 x 93
        ((5, 4), 8, (61, 43), (37, 26)),  # shrunk by a ratio that is no whole number
        ((1, 3), 32, (10, 70), (10, 70)),
    ],
)
@pytest.mark.parametrize("scale", [1, 3])
def test_every_pixel_shows_its_tokens_group(
    grid: tuple[int, int],
    stride: int,
    image: tuple[int, int],
    resized: tuple[int, int],
    scale: int,
) -> None:
    block = synthetic(grid, 30, stride)
    labels = View(image, resized).enlarge(block.groups, stride, scale)
    assert labels.shape == (image[0] * scale, image[1] * scale)
    for y, x in product(*(range(size) for size in labels.shape)):
        row = int((y + 0.5) / scale * resized[0] / image[0] / stride)
        col = int((x + 0.5) / scale * resized[1] / image[1] / stride)
        assert labels[y, x] == block.groups[row, col], (y, x)


def test_a_box_is_a_part_of_the_whole() -> None:
    block, view = synthetic((10, 13), 30, 4), View((33, 47), (39, 50))
    whole = view.enlarge(block.groups, 4, 2)
    part = view.enlarge(block.groups, 4, 2, (5, 8, 21, 40))
    np.testing.assert_array_equal(part, whole[10:42, 16:80])


def test_borders_lie_where_the_group_changes() -> None:
    labels = np.array([[0, 0, 1], [0, 2, 1], [0, 2, 2]])
    expected = np.array([[0, 1, 0], [1, 1, 1], [1, 0, 0]], bool)
    np.testing.assert_array_equal(outlines(labels), expected)


def test_drawn_map_is_flat_within_groups_and_marked_at_borders_only() -> None:
    block, view = synthetic((6, 7), 12, 4), View((24, 28), (24, 28))
    image = np.random.default_rng(0).integers(0, 256, (24, 28, 3), dtype=np.uint8)
    labels = view.enlarge(block.groups, 4)
    flat = draw_merge_map(image, block, view, 1, borders=False)
    for label in np.unique(labels):
        mean = image[labels == label].astype(float).mean(0)
        expected = np.broadcast_to(mean, (np.count_nonzero(labels == label), 3))
        np.testing.assert_allclose(flat[labels == label], expected, atol=0.51)
    drawn = draw_merge_map(image, block, view, 1)
    np.testing.assert_array_equal((drawn != flat).any(-1), outlines(labels))


def test_mean_colours_of_labels_with_gaps() -> None:
    image = np.array([[[0, 10, 20], [10, 20, 40]], [[7, 7, 7], [9, 9, 9]]], np.uint8)
    labels = np.array([[5, 5], [0, 9]])
    expected = [[[5, 15, 30], [5, 15, 30]], [[7, 7, 7], [9, 9, 9]]]
    np.testing.assert_array_equal(mean_colours(image, labels), expected)


def test_scale_makes_groups_visible_but_not_the_file_huge() -> None:
    groups = np.arange(64).reshape(8, 8) // 2 % 4 + np.arange(64).reshape(8, 8) // 16 * 4
    block = BlockGroups("m", groups, 4)  # 16 groups of 2 x 2 tokens: 8 pixels wide
    assert map_scale(block, View((32, 32), (32, 32))) == 25
    assert map_scale(block, View((1000, 900), (1000, 900))) == 2
    assert map_scale(block, View((1000, 900), (2000, 1800))) == 3
    assert map_scale(block, View((3000, 3000), (3000, 3000))) == 1


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        (dict(ori_shape=(333, 517), img_shape=(333, 517)), (333, 517)),
        (
            dict(ori_shape=(333, 517), img_shape=(800, 1242), scale_factor=(1242 / 517, 800 / 333)),
            (800, 1242),
        ),
        # mmdet's Pad writes the padded size into img_shape
        (dict(ori_shape=(60, 80), img_shape=(64, 96), scale_factor=(1.0, 1.0)), (60, 80)),
    ],
)
def test_view_of_a_sample(meta: dict, expected: tuple[int, int]) -> None:
    assert View.from_meta(meta) == View(meta["ori_shape"], expected)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (dict(ori_shape=(60, 80), img_shape=(50, 50), scale_factor=(1.0, 1.0)), "cropping"),
        (dict(ori_shape=(60, 80), img_shape=(60, 80), flip=True), "flip"),
    ],
)
def test_view_that_cannot_be_mapped_back(meta: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        View.from_meta(meta)


def tiny_swin(**kwargs: object) -> LTMSwin:
    torch.manual_seed(0)
    model = LTMSwin(embed_dims=16, num_heads=(1, 2, 4, 8), drop_path_rate=0.0, **kwargs)
    model.init_weights()
    return model.eval()


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "swin": lambda: tiny_swin(keep=PLAN),
    "vit": lambda: LTMViT("tiny", keep=([150, 150, 60],), num_layers=3, out_indices=(2,)),
    "mobilevit": lambda: LTMMobileViT("xxs", keep=0.5),
    "efficientvit": lambda: LTMEfficientViT("b0", keep=(None, None, (36, 16), (None, 25))),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_are_what_the_model_merged(family: str) -> None:
    """Each merge's own groups, under its block's name; of MobileViT's grids the first."""
    model, image = FAMILIES[family]().eval(), torch.randn(1, 3, 150, 203)
    blocks = merge_groups_of(model, image)
    with torch.no_grad(), record_merges(model) as merges:
        model(image)
    assert len(blocks) == len(merges) >= 2
    for block, (path, merge) in zip(blocks, merges, strict=True):
        assert path.startswith(f"{block.name}.merge")
        np.testing.assert_array_equal(block.groups, merge.groups()[0].numpy())
        assert block.groups.shape == merge.grid
        assert block.kept == (len(set(block.groups.flat)), merge.grid[0] * merge.grid[1])
        assert block.kept[0] < block.kept[1]


def test_pixels_of_one_colour_share_a_group() -> None:
    """An image whose halves are flat: no group of any block has tokens of both."""
    image = torch.zeros(1, 3, 224, 224)
    image[..., 128:] = 3.0
    for block in merge_groups_of(tiny_swin(keep=(25, None, None, None)), image):
        left, right = block.groups[:, :30], block.groups[:, 34:]
        assert not set(left.flat) & set(right.flat)


def test_names_strides_and_mode() -> None:
    model = tiny_swin(keep=25)
    model.train()
    blocks = merge_groups_of(model, torch.randn(1, 3, 333, 517))
    stages = [
        ("stages.0", 4, (84, 130)),
        ("stages.1", 8, (42, 65)),
        ("stages.2", 16, (21, 33)),
        ("stages.3", 32, (11, 17)),
    ]
    expected = [
        (f"{name}.blocks.{k}", stride, grid)
        for (name, stride, grid), depth in zip(stages, (2, 2, 6, 2), strict=True)
        for k in range(depth)
    ]
    assert [(b.name, b.stride, b.groups.shape) for b in blocks] == expected
    assert model.training


def test_nothing_merges() -> None:
    assert merge_groups_of(tiny_swin(keep=None), torch.randn(1, 3, 64, 64)) == []


def test_mode_is_kept_after_an_error() -> None:
    model = tiny_swin(keep=25).train()
    with pytest.raises(RuntimeError):
        merge_groups_of(model, torch.randn(1, 5, 64, 64))
    assert model.training
    with record_merges(model) as merges:
        pass
    assert merges == []


@pytest.mark.parametrize(
    ("count", "positions", "expected"),
    [
        (1, None, [0]),
        (2, None, [0, 1]),
        (3, None, [0, 1, 2]),
        (10, None, [0, 5, 9]),
        (10, (2, -1, 0), [2, 9, 0]),
    ],
)
def test_choice_of_blocks(count: int, positions: tuple | None, expected: list[int]) -> None:
    blocks = [synthetic((2, 2), 3, 4) for _ in range(count)]
    found = choose_blocks(blocks, positions)
    assert [id(block) for block in found] == [id(blocks[k]) for k in expected]


@pytest.mark.parametrize("position", [2, -3])
def test_no_such_block(position: int) -> None:
    blocks = [synthetic((2, 2), 3, 4) for _ in range(2)]
    with pytest.raises(ValueError, match="positions from 0 to 1 among the merging blocks"):
        choose_blocks(blocks, (position,))


def scene(*blocks: BlockGroups) -> Scene:
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return Scene(image, View((40, 56), (40, 56)), blocks, "a caption")


def test_figure_says_what_is_kept() -> None:
    block = BlockGroups("backbone.stages.2.blocks.5", np.arange(140).reshape(10, 14) // 4, 4)
    assert block_title(block) == "backbone.stages.2.blocks.5, stride 4\nkept 35 of 140 tokens"
    figure = merge_map_figure(scene(block, synthetic((10, 14), 9, 4)))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[1] == block_title(block)
    assert titles[2].endswith("kept 9 of 140 tokens")
    assert figure.get_supxlabel() == "a caption"


def test_shared_figure_marks_all_of_a_group() -> None:
    """A group of three tokens that lie apart: the crop has them all, and only they are marked."""
    groups = np.arange(140).reshape(10, 14)
    groups[9, 13] = groups[0, 3] = groups[5, 5]
    figure = shared_figure(scene(BlockGroups("m", groups, 4)), [(22, 21)])
    (axis,) = figure.axes
    assert axis.get_title() == "x=22, y=21\n3 tokens"
    drawn = axis.images[0].get_array()
    scale = drawn.shape[0] // 40
    coloured = (drawn.max(-1).astype(int) - drawn.min(-1) > 20)[scale // 2 :: scale]
    coloured = coloured[:, scale // 2 :: scale]
    x0 = 56 - coloured.shape[1]  # the square is as high as the image, and reaches to (9, 13)
    expected = np.zeros((40, 56), bool)
    for row, col in ((9, 13), (0, 3), (5, 5)):
        expected[4 * row : 4 * row + 4, 4 * col : 4 * col + 4] = True
    inside = ~outlines(groups.repeat(4, 0).repeat(4, 1))
    np.testing.assert_array_equal((coloured & inside[:, x0:]), (expected & inside)[:, x0:])
