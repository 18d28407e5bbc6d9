"""``torch.func``, forward derivatives and gradients of gradients on merged models."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

import ltm_mm
from ltm_mm.kernels import use_kernels
from ltm_mm.models import LTMSwin
from tests.models.contract import randomise, same_groups, settled

from .sources import mm_swin

SMALL = dict(embed_dims=8, depths=(2,), num_heads=(2,), strides=(4,), out_indices=(0,))
SIZE = (52, 60)  # windows that are padded, shifted and not


def swin() -> nn.Module:
    return randomise(LTMSwin(**SMALL, keep=25, drop_path_rate=0.0))


def vit() -> nn.Module:
    own = dict(embed_dim=16, num_heads=2, depth=2, img_size=64, patch_size=8, num_classes=3)
    model = settled(timm.create_model("vit_tiny_patch16_224", **own))
    return ltm_mm.apply(model, keep=((150, 90),))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "swin": swin,
    "vit": vit,
    "mmdet": lambda: ltm_mm.apply(settled(mm_swin("mmdet")), keep=0.5),
}
models = pytest.mark.parametrize("name", MODELS)


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A model and images in double precision, where rounding moves no token."""
    torch.manual_seed(0)
    size = (64, 64) if name == "vit" else SIZE
    model = MODELS[name]().double()
    model.eval()  # not chained: mmdet's Swin returns None
    return model, torch.randn(3, 3, *size).double()


def out_of(model: nn.Module, x: Tensor) -> Tensor:
    output = model(x)
    return output[0] if isinstance(output, tuple | list) else output


def call(model: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    output = functional_call(model, parameters, (x,))
    return output[0] if isinstance(output, tuple | list) else output


@models
def test_gradients_of_every_sample(name):
    model, x = build(name)
    parameters = {k: p.detach() for k, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return call(model, parameters, image[None]).square().mean()

    found = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    with use_kernels(False):
        for index, image in enumerate(x):
            model.zero_grad()
            out_of(model, image[None]).square().mean().backward()
            for key, parameter in model.named_parameters():
                if parameter.grad is not None:  # later stages' are not in the first map
                    assert_close(found[key][index], parameter.grad, rtol=1e-5, atol=1e-7)


@models
@pytest.mark.parametrize("gradients", [True, False])
def test_images_one_by_one(name, gradients):
    model, x = build(name)
    with torch.set_grad_enabled(gradients):
        found = vmap(lambda image: out_of(model, image[None])[0])(x)
        with use_kernels(False):
            assert_close(found, out_of(model, x), rtol=1e-6, atol=1e-6)
        single = vmap(lambda image: out_of(model.float(), image[None])[0])(x.float())
    assert single.isfinite().all()  # where kernels would run if nothing were mapped


@models
@pytest.mark.parametrize("way", ["torch.func", "dual numbers", "no gradients"])
def test_forward_derivatives(name, way):
    model, x = build(name)
    direction = torch.randn_like(x)
    if way == "torch.func":
        _, tangent = jvp(lambda image: out_of(model, image), (x,), (direction,))
    else:
        forward_ad = torch.autograd.forward_ad
        with torch.set_grad_enabled(way == "dual numbers"), forward_ad.dual_level():
            out = out_of(model, forward_ad.make_dual(x, direction))
            tangent = forward_ad.unpack_dual(out).tangent
    # The same by two gradients.
    with use_kernels(False), sdpa_kernel(SDPBackend.MATH):
        out = out_of(model, x.requires_grad_())
        weights = torch.ones_like(out, requires_grad=True)
        (slope,) = torch.autograd.grad(out, x, weights, create_graph=True)
        (expected,) = torch.autograd.grad(slope, weights, direction)
    assert_close(tangent, expected, rtol=1e-5, atol=1e-6)


@models
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_gradients(name, dtype):
    model, x = build(name)
    model.to(dtype)
    seen = []
    # timm's ViT attends by PyTorch's fused kernel, which has no second derivatives.
    kernel = sdpa_kernel(SDPBackend.MATH) if name == "vit" else nullcontext()
    with kernel, same_groups() as again:
        for on in (True, False):
            image = x.to(dtype).requires_grad_()
            with use_kernels(on):
                out = out_of(model, image)
                (slope,) = torch.autograd.grad(out.square().sum(), image, create_graph=True)
                parameters = [p for p in model.parameters() if p.requires_grad]
                seen.append(
                    torch.autograd.grad(slope.square().sum(), parameters, allow_unused=True)
                )
            again()
    for a, b in zip(*seen, strict=True):
        assert (a is None) is (b is None)
        if b is not None:
            assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))
