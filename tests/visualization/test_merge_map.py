"""Merge maps follow the masks: synthetic masks with known groups, pixel by pixel."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ltm_mm.layers import TokenMerger
from ltm_mm.models.backbones import LTMEfficientViT, LTMSwin
from ltm_mm.ops import hat_prior, pad_to_windows, to_windows, unmerge_grid
from ltm_mm.visualization.merge_map import (
    Record,
    StageMasks,
    View,
    draw_merge_map,
    map_scale,
    mean_colours,
    merge_masks_of,
    outlines,
    record_merges,
    stage_of,
)

PLAN = (None, (7, 5), (5, 5, 5, 3, 3, 3), None)


def synthetic(grid: tuple[int, int], window: int, slots: int, stride: int) -> StageMasks:
    """A stage whose tokens belong to random slots of their window, for certain."""
    torch.manual_seed(0)
    windows = -(-grid[0] // window) * -(-grid[1] // window)
    groups = torch.randint(slots**2, (windows, window**2))
    back = torch.nn.functional.one_hot(groups, slots**2).float()
    hat = hat_prior(window, slots).softmax(-1).expand_as(back)
    return StageMasks("stages.0", grid, window, (slots,), stride, back, back, hat, False)


def group_of(stage: StageMasks, row: int, col: int) -> int:
    """Number of a token's slot, by the definition: one token at a time."""
    per_row = -(-stage.grid[1] // stage.window)
    window = row // stage.window * per_row + col // stage.window
    token = row % stage.window * stage.window + col % stage.window
    return window * stage.back.shape[-1] + int(stage.back[window, token].argmax())


@pytest.mark.parametrize(
    ("grid", "window", "slots", "stride", "image", "resized"),
    [
        ((10, 13), 7, 5, 4, (40, 52), (40, 52)),  # every pixel has its token
        ((9, 11), 4, 2, 4, (33, 41), (33, 41)),  # the last tokens stand for part of a patch
        ((20, 24), 7, 3, 4, (33, 52), (66, 93)),  # enlarged, and padding beyond 66 x 93
        ((5, 4), 3, 1, 8, (61, 43), (37, 26)),  # shrunk by a ratio that is no whole number
        ((1, 3), 7, 5, 32, (10, 70), (10, 70)),  # smaller than a window
    ],
)
@pytest.mark.parametrize("scale", [1, 3])
def test_every_pixel_shows_its_tokens_slot(
    grid: tuple[int, int],
    window: int,
    slots: int,
    stride: int,
    image: tuple[int, int],
    resized: tuple[int, int],
    scale: int,
) -> None:
    stage = synthetic(grid, window, slots, stride)
    labels = View(image, resized).enlarge(stage.slot_map(), stride, scale)
    assert labels.shape == (image[0] * scale, image[1] * scale)
    for y, x in product(*(range(size) for size in labels.shape)):
        row = int((y + 0.5) / scale * resized[0] / image[0] / stride)
        col = int((x + 0.5) / scale * resized[1] / image[1] / stride)
        assert labels[y, x] == group_of(stage, row, col), (y, x)


def test_a_box_is_a_part_of_the_whole() -> None:
    stage, view = synthetic((10, 13), 7, 5, 4), View((33, 47), (39, 50))
    whole = view.enlarge(stage.slot_map(), 4, 2)
    part = view.enlarge(stage.slot_map(), 4, 2, (5, 8, 21, 40))
    np.testing.assert_array_equal(part, whole[10:42, 16:80])


def test_borders_lie_where_the_slot_changes() -> None:
    labels = np.array([[0, 0, 1], [0, 2, 1], [0, 2, 2]])
    expected = np.array([[0, 1, 0], [1, 1, 1], [1, 0, 0]], bool)
    np.testing.assert_array_equal(outlines(labels), expected)


def test_drawn_map_is_flat_within_slots_and_marked_at_borders_only() -> None:
    stage, view = synthetic((6, 7), 3, 2, 4), View((24, 28), (24, 28))
    image = np.random.default_rng(0).integers(0, 256, (24, 28, 3), dtype=np.uint8)
    labels = view.enlarge(stage.slot_map(), 4)
    flat = draw_merge_map(image, stage, view, 1, borders=False)
    for label in np.unique(labels):
        mean = image[labels == label].astype(float).mean(0)
        expected = np.broadcast_to(mean, (np.count_nonzero(labels == label), 3))
        np.testing.assert_allclose(flat[labels == label], expected, atol=0.51)
    drawn = draw_merge_map(image, stage, view, 1)
    np.testing.assert_array_equal((drawn != flat).any(-1), outlines(labels))


def test_mean_colours_of_labels_with_gaps() -> None:
    image = np.array([[[0, 10, 20], [10, 20, 40]], [[7, 7, 7], [9, 9, 9]]], np.uint8)
    labels = np.array([[5, 5], [0, 9]])
    expected = [[[5, 15, 30], [5, 15, 30]], [[7, 7, 7], [9, 9, 9]]]
    np.testing.assert_array_equal(mean_colours(image, labels), expected)


def test_scale_makes_slots_visible_but_not_the_file_huge() -> None:
    stage = synthetic((8, 8), 4, 2, 4)  # a slot is 8 pixels wide
    assert map_scale(stage, View((32, 32), (32, 32))) == 25
    assert map_scale(stage, View((1000, 900), (1000, 900))) == 2
    assert map_scale(stage, View((1000, 900), (2000, 1800))) == 3
    assert map_scale(stage, View((3000, 3000), (3000, 3000))) == 1


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


def back_by_impulses(stage: StageMasks, records: list[Record]) -> Tensor:
    """Which final slot reaches which token: unit updates led back through the real unmerging."""
    last = records[-1].merged
    _, height, width, _ = last.slots.shape
    reached = torch.zeros(*stage.grid, height, width)
    for row, col in product(range(height), range(width)):
        grid = last.slots.clone()
        grid[:, row, col] += 1000.0
        for record in reversed(records):
            grid = unmerge_grid(grid, record.merged)
        reached[:, :, row, col] = (grid - records[0].merged.tokens)[0, :, :, 0] / 1000
    return reached


@pytest.mark.parametrize(
    ("build", "size", "name"),
    [
        (lambda: tiny_swin(slots=PLAN), (150, 203), "stages.2"),
        (
            lambda: LTMEfficientViT("b0", (None, None, (6, 4), (8, 5)), window_size=8).eval(),
            (171, 203),
            "stages.2",
        ),
    ],
    ids=["swin", "efficientvit"],
)
def test_several_merges_are_taken_together_as_the_model_undoes_them(
    build: Callable[[], nn.Module], size: tuple[int, int], name: str
) -> None:
    torch.manual_seed(0)
    model, image = build(), torch.randn(1, 3, *size)
    stage = next(s for s in merge_masks_of(model, image) if s.name == name)
    with torch.no_grad(), record_merges(model) as records:
        model(image)
    assert len(stage.counts) == 2
    reached = back_by_impulses(stage, records[name])  # (H, W, h, w)
    side = stage.counts[-1]
    per_row = -(-stage.grid[1] // stage.window)
    expected = torch.zeros(*stage.grid, stage.back.shape[0] * side**2)
    for row, col in product(*(range(n) for n in reached.shape[2:])):
        window = row // side * per_row + col // side
        expected[:, :, window * side**2 + row % side * side + col % side] = reached[:, :, row, col]
    got = torch.zeros_like(expected)
    for row, col in product(*(range(n) for n in stage.grid)):
        window = row // stage.window * per_row + col // stage.window
        token = row % stage.window * stage.window + col % stage.window
        got[row, col, window * side**2 : (window + 1) * side**2] = stage.back[window, token]
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(stage.slot_map(), got.argmax(-1).numpy())


def test_weights_are_what_merged_tokens_are_made_of() -> None:
    torch.manual_seed(0)
    model, image = tiny_swin(slots=PLAN), torch.randn(1, 3, 150, 203)
    stage = merge_masks_of(model, image)[1]
    with torch.no_grad(), record_merges(model) as records:
        model(image)
    first, second = records["stages.2"]
    # Merging is linear: the second merge of the first one's slots, block updates left out.
    windows = first.merged.slots  # (1, h, w, C)
    slots = second.merger.slots
    merged = second.to_slots[0].mT @ _windows(windows, second.merger.window)
    tokens = first.merged.tokens[0]
    for slot in (0, 3, merged.shape[0] * slots**2 - 1):
        weights = torch.from_numpy(stage.weights(slot))
        torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
        own = (weights.unsqueeze(-1) * tokens).sum((0, 1))
        torch.testing.assert_close(
            own, merged[slot // slots**2, slot % slots**2], rtol=1e-4, atol=1e-4
        )


def _windows(grid: Tensor, window: int) -> Tensor:
    return to_windows(pad_to_windows(grid, window), window)[0]


def test_departure_is_zero_for_the_prior_and_grows_with_content() -> None:
    image = torch.randn(1, 3, 96, 75, generator=torch.Generator().manual_seed(0))
    prior_only = merge_masks_of(tiny_swin(slots=PLAN, steps=0), image)
    for stage in prior_only:
        np.testing.assert_allclose(stage.departure(), 0, atol=1e-6)
        assert not stage.trained
    model = tiny_swin(slots=PLAN)
    sharp = merge_masks_of(model, image)
    for module in model.modules():
        if isinstance(module, TokenMerger):
            torch.nn.init.constant_(module.mask.log_sharpness, -4.0)
    blunt = merge_masks_of(model, image)
    for before, after in zip(sharp, blunt, strict=True):
        assert 0 < after.departure().mean() < before.departure().mean() <= 1
        assert after.trained
        assert not before.trained


def test_stages_strides_and_hooks() -> None:
    model = tiny_swin(slots="fast")
    model.train()
    stages = merge_masks_of(model, torch.randn(1, 3, 333, 517))
    assert [(s.name, s.stride, s.grid) for s in stages] == [
        ("stages.0", 4, (84, 130)),
        ("stages.1", 8, (42, 65)),
        ("stages.2", 16, (21, 33)),
        ("stages.3", 32, (11, 17)),
    ]
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_hooks_are_removed_after_an_error() -> None:
    model = tiny_swin()
    with pytest.raises(RuntimeError):
        merge_masks_of(model, torch.randn(1, 5, 64, 64))
    assert not any(m._forward_hooks for m in model.modules())


def test_nothing_merges() -> None:
    assert merge_masks_of(tiny_swin(slots=None), torch.randn(1, 3, 64, 64)) == []


@pytest.mark.parametrize(
    ("place", "stage"),
    [
        ("stages.2.blocks.1", "stages.2"),
        ("backbone.stages.0.blocks.5", "backbone.stages.0"),
        ("blocks.3", "blocks"),
        ("stages.4.1.transformer.0", "stages.4.1.transformer"),
        ("layer", "layer"),
    ],
)
def test_names_of_stages(place: str, stage: str) -> None:
    assert stage_of(place) == stage


class Blocks(nn.Module):
    """A network of another family: mergers in a row; ``undo`` leads each one's update back."""

    def __init__(self, plan: list[tuple[int, int]], undo: bool) -> None:
        super().__init__()
        self.undo = undo
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"merge": TokenMerger(window, slots)}) for window, slots in plan
        )

    def forward(self, x: Tensor) -> Tensor:
        grid, merges = x.permute(0, 2, 3, 1)[:, ::4, ::4], []
        for block in self.blocks:
            merged = block["merge"](grid, merges[-1].slot_mass() if merges else None)
            grid = unmerge_grid(merged.slots, merged) if self.undo else merged.slots
            merges = [] if self.undo else [*merges, merged]
        return grid


def test_any_network_with_mergers() -> None:
    image = torch.randn(1, 3, 50, 71)
    chained = merge_masks_of(Blocks([(6, 4), (4, 2)], undo=False), image)
    assert [(s.name, s.window, s.counts, s.stride) for s in chained] == [("blocks", 6, (4, 2), 4)]
    undone = merge_masks_of(Blocks([(6, 4), (6, 3)], undo=True), image)
    assert [(s.name, s.counts) for s in undone] == [("blocks", (4,)), ("blocks.1", (3,))]
    assert all(s.grid == (13, 18) for s in chained + undone)


def test_masks_of_all_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU a large grid is merged band by band; the record has the windows of all."""
    model, image = tiny_swin(slots=PLAN), torch.randn(1, 3, 150, 203)
    whole = merge_masks_of(model, image)
    calls = []
    for module in model.modules():
        if isinstance(module, TokenMerger):
            module.mask.register_forward_pre_hook(lambda *_: calls.append(1))
    monkeypatch.setattr("ltm_mm.ops.windows.BAND", 1)
    banded = merge_masks_of(model, image)
    assert len(calls) > 3  # mergers: 3
    for one, many in zip(whole, banded, strict=True):
        torch.testing.assert_close(many.to_slots, one.to_slots)
        torch.testing.assert_close(many.back, one.back)
