"""RoIAlign of the fallback against loops over samples."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

pytestmark = pytest.mark.usefixtures("stand_in")

# image, x1 y1 x2 y2 in image pixels (scale 1/2): inside, thin, beyond every border, tiny
ROIS = [
    [0, 2.3, 1.1, 9.7, 8.2],
    [1, 5.0, 3.0, 5.6, 11.5],
    [0, -6.0, -4.0, 30.0, 25.0],
    [1, 7.2, 7.1, 7.4, 7.3],
]
SCALE = 0.5


def sample(image: Tensor, y: float, x: float) -> Tensor:
    """Bilinear value ``(C,)`` of an image ``(C, H, W)``; zero more than a pixel outside."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return image[:, 0, 0] * 0
    y, x = max(y, 0.0), max(x, 0.0)
    low_y, low_x = min(int(y), height - 1), min(int(x), width - 1)
    high_y, high_x = min(low_y + 1, height - 1), min(low_x + 1, width - 1)
    part_y = y - low_y if low_y < height - 1 else 0.0
    part_x = x - low_x if low_x < width - 1 else 0.0
    top = (1 - part_x) * image[:, low_y, low_x] + part_x * image[:, low_y, high_x]
    bottom = (1 - part_x) * image[:, high_y, low_x] + part_x * image[:, high_y, high_x]
    return (1 - part_y) * top + part_y * bottom


def roi_align_loop(
    images: Tensor, rois: Tensor, size: tuple[int, int], ratio: int, aligned: bool
) -> Tensor:
    shift = 0.5 if aligned else 0.0
    regions = []
    for index, *corners in rois.tolist():
        x1, y1, x2, y2 = (corner * SCALE - shift for corner in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        bin_h, bin_w = height / size[0], width / size[1]
        rows, columns = ratio or math.ceil(bin_h), ratio or math.ceil(bin_w)
        bins = [
            sum(
                sample(
                    images[int(index)],
                    y1 + (i + (k + 0.5) / rows) * bin_h,
                    x1 + (j + (m + 0.5) / columns) * bin_w,
                )
                for k in range(rows)
                for m in range(columns)
            )
            / (rows * columns)
            for i in range(size[0])
            for j in range(size[1])
        ]
        regions.append(torch.stack(bins, dim=1).unflatten(1, size))
    return torch.stack(regions)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_values_and_gradients_equal_loop(ratio: int, aligned: bool, device: str) -> None:
    from mmcv.ops import roi_align

    torch.manual_seed(0)
    images = torch.randn(2, 3, 7, 9, requires_grad=True)
    rois = torch.tensor(ROIS)
    expected = roi_align_loop(images, rois, (3, 2), ratio, aligned)
    weights = torch.randn_like(expected)
    (expected_grad,) = torch.autograd.grad((expected * weights).sum(), images)

    inputs = images.detach().to(device).requires_grad_()
    output = roi_align(inputs, rois.to(device), (3, 2), SCALE, ratio, "avg", aligned)
    torch.testing.assert_close(output.cpu(), expected, rtol=1e-5, atol=1e-5)
    (output * weights.to(device)).sum().backward()
    torch.testing.assert_close(inputs.grad.cpu(), expected_grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("aligned", [True, False])
def test_gradcheck(aligned: bool) -> None:
    from mmcv.ops import roi_align

    torch.manual_seed(0)
    images = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor(ROIS, dtype=torch.float64)
    assert gradcheck(lambda x: roi_align(x, rois, 2, SCALE, 0, "avg", aligned), images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype) -> None:
    from mmcv.ops import roi_align

    torch.manual_seed(0)
    images = torch.randn(2, 3, 7, 9, dtype=dtype, requires_grad=True)
    rois = torch.tensor(ROIS, dtype=dtype)
    output = roi_align(images, rois, (3, 2), SCALE)
    assert output.dtype == dtype
    expected = roi_align_loop(images.detach().float(), rois.float(), (3, 2), 0, True)
    torch.testing.assert_close(output, expected.to(dtype))
    output.sum().backward()
    assert images.grad.dtype == dtype


def test_no_rois() -> None:
    from mmcv.ops import roi_align

    images = torch.randn(1, 3, 7, 9, requires_grad=True)
    output = roi_align(images, torch.zeros(0, 5), (3, 2))
    assert output.shape == (0, 3, 3, 2)
    output.sum().backward()
    torch.testing.assert_close(images.grad, torch.zeros_like(images))


def test_max_pooling_raises() -> None:
    from mmcv.ops import roi_align

    with pytest.raises(NotImplementedError, match=r"pool_mode='max'.*pool_mode='avg' or.*make ops"):
        roi_align(torch.randn(2, 3, 7, 9), torch.tensor(ROIS), (3, 2), SCALE, 0, "max")
