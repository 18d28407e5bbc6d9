"""The laws of merging on cases drawn from all families, libraries, sizes, plans, details."""

import traceback

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import ltm_mm
from ltm_mm.merging import Groups, record_merges
from ltm_mm.merging.grid import GridMerge
from ltm_mm.merging.record import Merge, WindowMerge
from ltm_mm.ops import window_regions

from .drawn import APPLIED, Case, draw, outputs

CASES = [draw(number) for number in range(24)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.number} {case.kind}")
def test_the_laws_hold(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("start", range(24, 2024, 100))
def test_the_laws_hold_of_many_more(start: int) -> None:
    failed = []
    for number in range(start, start + 100):
        case = draw(number)
        try:
            check(case)
        except Exception:
            failed.append(f"{case}\n{traceback.format_exc(limit=-4)}")
    assert not failed, f"{len(failed)} of 100 cases:\n" + "\n".join(failed)


def check(case: Case) -> None:
    """All laws on one case."""
    plain = case.plain()
    merged = case.merged(plain)
    keeping_all_is_the_reference(case, plain)
    shapes_are_the_plain_ones(case, plain, merged)
    half_precision_is_finite(case, merged)
    an_image_stands_alone_to_the_bit(case, merged)
    if case.kind in APPLIED:
        remove_gives_back_to_the_bit(case, plain, merged)
        merged = case.merged(plain)
    merged = merged.double()
    groups_partition(case, merged)
    an_image_depends_on_no_batch(case, merged)
    padding_is_read_by_nobody(case, merged)


def keeping_all_is_the_reference(case: Case, plain: nn.Module) -> None:
    reference = case.reference(plain)
    if reference is None:
        return
    x = case.image()
    found, expected = outputs(case.all_kept(plain), x), outputs(reference, x)
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, rtol=1e-5, atol=2e-5 * max(float(b.abs().max()), 1))


def shapes_are_the_plain_ones(case: Case, plain: nn.Module, merged: nn.Module) -> None:
    x = case.image()
    merged_maps, expected = outputs(merged, x), outputs(plain, x)
    assert [y.shape for y in merged_maps] == [y.shape for y in expected]
    assert all(y.isfinite().all() for y in merged_maps)


def half_precision_is_finite(case: Case, merged: nn.Module) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(y.isfinite().all() for y in outputs(merged, case.image()))


def an_image_stands_alone_to_the_bit(case: Case, merged: nn.Module) -> None:
    """Whatever stands beside it, and is it not a number."""
    x = torch.cat((case.image()[:1], case.image()))
    other = x.clone()
    other[1:] = torch.nan
    for a, b in zip(outputs(merged, x), outputs(merged, other), strict=True):
        assert_close(b[0], a[0], rtol=0, atol=0)


def remove_gives_back_to_the_bit(case: Case, plain: nn.Module, merged: nn.Module) -> None:
    x = case.image()
    ltm_mm.remove(merged)
    assert list(map(type, merged.modules())) == list(map(type, plain.modules()))
    assert_close(dict(merged.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)
    assert_close(outputs(merged, x), outputs(plain, x), rtol=0, atol=0)


def an_image_depends_on_no_batch(case: Case, merged: nn.Module) -> None:
    """In double precision: else rounding, which a batch's size decides, decides near ties."""
    x = case.image(dtype=torch.float64)
    together = outputs(merged, x)
    for i in range(len(x)):
        for a, b in zip(outputs(merged, x[i : i + 1]), together, strict=True):
            assert_close(a, b[i : i + 1], rtol=1e-6, atol=1e-6)


def padding_is_read_by_nobody(case: Case, merged: nn.Module) -> None:
    """Padded to whole patches by the caller, an image gives what the model's padding does."""
    if not case.pads:
        return
    x = case.image(dtype=torch.float64)
    right, bottom = (-size % case.pads for size in (x.shape[3], x.shape[2]))
    wide = nn.functional.pad(x, (0, right, 0, bottom))
    for a, b in zip(outputs(merged, wide), outputs(merged, x), strict=True):
        a = a[tuple(slice(0, size) for size in b.shape)]  # a pyramid's maps are cut to the image
        assert_close(a, b, rtol=1e-6, atol=1e-6)


def groups_partition(case: Case, merged: nn.Module) -> None:
    with record_merges(merged) as merges:
        outputs(merged, case.image(dtype=torch.float64))
    for name, merge in merges:
        images, (height, width) = merge.merged.shape[0], merge.grid
        shares = merge.share(torch.ones(images, height, width, 1, dtype=torch.float64))
        whole = torch.full((images, 1), float(height * width)).double()
        assert_close(shares.sum(1), whole, rtol=1e-6, atol=1e-6, msg=name)
        groups = merge.groups()
        assert groups.shape == (images, height, width)
        assert 0 <= groups.min() <= groups.max() < merge.merged.shape[1], name
        if isinstance(merge, GridMerge):
            assert_close(merge.u.sum(-1), torch.ones_like(merge.u[..., 0]))
        else:
            masks_partition(merge)


def masks_partition(merge: Merge) -> None:
    """Of windows, or of whole images: rows of U sum to 1, columns of G too, padding weighs 0."""
    mask = merge.mask
    g, u = (m.double() for m in mask.masks())  # (..., N, P)
    assert_close(u.sum(-1), torch.ones_like(u[..., 0]), rtol=1e-5, atol=1e-5)
    wanted = (mask.masses() > 1e-4).double()
    full = g.sum(-2)
    assert_close(full * wanted, wanted, rtol=1e-5, atol=1e-5)
    if isinstance(mask, Groups):
        assert (u.sum(-2) > 0).all()
        assert ((u == 0) | (u == 1)).all()
        assert_close(
            mask.roots.sort(-1)[0].diff().clamp(max=1), torch.ones_like(mask.roots[..., 1:])
        )
        assert_close(
            mask.group_index.gather(-1, mask.roots), torch.arange(mask.count).expand_as(mask.roots)
        )
    if isinstance(merge, WindowMerge):
        assert_close(mask.sizes.double().sum(-1), torch.full_like(full[..., 0], u.shape[-2]))
        if mask.mass is not None:
            assert (g * (mask.mass == 0).unsqueeze(-1)).abs().max() == 0
        regions_stay_apart(merge, u)


def regions_stay_apart(merge: WindowMerge, u: Tensor) -> None:
    windows = merge.windows
    index = windows.shift_index(*merge.grid, u.device)
    if index is None:
        return
    regions = window_regions(windows.size, windows.shift)[index]  # (n, N)
    by_region = nn.functional.one_hot(regions.long(), 4).to(u)  # (n, N, 4)
    shares = u.transpose(-1, -2) @ by_region  # (B, n, P, 4)
    assert ((shares > 1e-6).sum(-1) <= 1).all()
