"""MACs against hand calculations and published numbers."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import ltm_mm
from ltm_mm.analysis.benchmark.flops import count_macs
from ltm_mm.merging import rounds
from ltm_mm.merging.masks import REGIONS
from ltm_mm.models import LTMEfficientViT, LTMMobileViT, LTMSwin, LTMViT

C, HEADS, HIDDEN = 16, 2, 64  # one stage
w, P = 7, 25
N = w * w
n = 2 * 3  # windows of a grid of 14 x 21 tokens


def one_stage(*plan: int) -> LTMSwin:
    options = dict(embed_dims=C, depths=(len(plan),), num_heads=(HEADS,), strides=(4,))
    return LTMSwin(**options, keep=(plan,), out_indices=(0,)).eval()


def image() -> torch.Tensor:
    return torch.randn(1, 3, 14 * 4, 21 * 4)


def attention(tokens: int) -> int:
    """qkv, logits, sums of values, projection, of all windows."""
    return n * (tokens * C * 3 * C + 2 * tokens * tokens * C + tokens * C * C)


def mlp(tokens: int) -> int:
    return n * tokens * 2 * C * HIDDEN


def matching(shifted: bool) -> int:
    """Similarities between one half of the groups and the other, round by round."""
    total, left = 0, N
    for pairs in rounds(N, P, REGIONS if shifted else 1):
        total += -(-left // 2) * (left // 2) * C
        left -= pairs
    return n * total


EMBED = n * N * 3 * 4 * 4 * C


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ((N,), dict(rest=EMBED, attention=attention(N), mlp=mlp(N))),
        (
            (P,),
            dict(rest=EMBED, attention=attention(P), mlp=mlp(P), merge=matching(False)),
        ),
        (
            (N, P),
            dict(
                rest=EMBED,
                attention=attention(N) + attention(P),
                mlp=mlp(N) + mlp(P),
                merge=matching(True),
            ),
        ),
    ],
)
def test_blocks_by_hand(plan, expected):
    counted = count_macs(one_stage(*plan), image())
    assert counted.by_part == expected
    assert counted.total == sum(expected.values())
    blocks = sum(counted.by_module[f"stages.0.blocks.{k}"] for k in range(len(plan)))
    assert counted.by_module["stages.0"] == blocks == counted.total - EMBED


def test_counts_whole_batches_and_leaves_the_mode():
    model = one_stage(P).train()
    one = count_macs(model, torch.randn(1, 3, 56, 56)).total
    assert count_macs(model, torch.randn(3, 3, 56, 56)).total == 3 * one
    assert model.training


def test_attention_counts_the_same_fused_and_written_out():
    q = torch.randn(2, 3, 5, 8)

    class Attend(nn.Module):
        def forward(self, q):
            return F.scaled_dot_product_attention(q, q, q)

    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(backend):
            assert count_macs(Attend(), q).total == 2 * 3 * (5 * 8 * 5 + 5 * 5 * 8)


@pytest.mark.parametrize(
    ("equation", "shapes", "macs"),
    [
        ("bnc,bmc->bnm", [(2, 3, 4), (2, 5, 4)], 2 * 3 * 5 * 4),
        ("bhwc,cd->bhwd", [(2, 3, 4, 5), (5, 6)], 2 * 3 * 4 * 5 * 6),
        ("nc,c->n", [(3, 4), (4,)], 3 * 4),
    ],
)
def test_einsum_is_seen(equation, shapes, macs):
    class Einsum(nn.Module):
        def forward(self, _):
            return torch.einsum(equation, *(torch.randn(shape) for shape in shapes))

    assert count_macs(Einsum(), torch.empty(0)).total == macs


def test_a_matrix_times_a_vector_is_seen():
    class Product(nn.Module):
        def forward(self, x):
            return x @ x[0] + torch.addmv(x[:, 0], x, x[0])

    assert count_macs(Product(), torch.randn(4, 5)).total == 2 * 4 * 5


def test_swin_tiny_has_the_published_count():
    x = torch.randn(1, 3, 224, 224)
    ours = count_macs(LTMSwin(keep=None), x).total
    assert ours == pytest.approx(4.5e9, rel=0.005)  # as published, rounded
    # timm's has a classifier on top, and is otherwise equal to the last MAC.
    assert count_macs(timm.create_model("swin_tiny_patch4_window7_224"), x).total == (
        ours + 768 * 1000
    )


def test_efficientvit_b1_has_the_published_count():
    whole = timm.create_model("efficientvit_b1")
    x = torch.randn(1, 3, 224, 224)
    assert count_macs(whole, x).total == pytest.approx(0.52e9, rel=0.02)
    head = count_macs(whole.head, torch.randn(1, 256, 7, 7)).total
    ours = count_macs(LTMEfficientViT("b1", keep=None), x)
    assert ours.total == count_macs(whole, x).total - head
    assert set(ours.by_part) == {"attention", "mlp", "rest"}


@pytest.mark.parametrize("build", ["swin", "efficientvit"])
def test_merging_a_built_model_counts_as_the_backbone_of_its_own(build):
    x = torch.randn(1, 3, 64, 96)
    if build == "swin":
        from mmdet.models.backbones import SwinTransformer

        tiny = dict(embed_dims=C, depths=(2, 2), num_heads=(1, 2), strides=(4, 2))
        built = SwinTransformer(**tiny, out_indices=(0, 1))
        ours = [LTMSwin(**tiny, out_indices=(0, 1), keep=p) for p in (None, "balanced")]
    else:
        built = timm.create_model("efficientvit_b0", features_only=True)
        ours = [LTMEfficientViT("b0", keep=p) for p in (None, "balanced")]
    assert count_macs(built, x).by_part == count_macs(ours[0], x).by_part
    ltm_mm.apply(built, keep="balanced")
    assert count_macs(built, x).by_part == count_macs(ours[1], x).by_part


NARROW = dict(embed_dims=32, num_heads=(1, 2, 4, 8))
FAMILIES = {
    "swin": lambda keep: LTMSwin(depths=(1, 1, 2, 2), **NARROW, keep=keep),
    "vit": lambda keep: LTMViT(arch="tiny", keep=keep),
    "efficientvit": lambda keep: LTMEfficientViT(arch="b0", keep=keep),
    "mobilevit": lambda keep: LTMMobileViT(arch="xxs", keep=keep),
}


@pytest.mark.slow  # minutes of jit.trace
@pytest.mark.parametrize("family", FAMILIES)
def test_counters_of_others_see_all_that_ours_sees(family):
    """mmengine's (mmdet's get_flops.py), PyTorch's and jit.trace, which theirs stand on."""
    from mmengine.analysis import get_model_complexity_info

    whole, merged = (FAMILIES[family](keep).eval() for keep in (None, "fast"))
    x = torch.randn(1, 3, 160, 160)
    totals = []
    for model in (whole, merged):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(x)
        our_count = count_macs(model, x)
        # Neither knows PyTorch's fused attention on the CPU, which plain blocks use then.
        unknown = our_count.by_part.get("attention", 0) // 2
        assert our_count.total - unknown <= counter.get_total_flops() / 2 <= our_count.total
        options = dict(show_table=False, show_arch=False)
        theirs = get_model_complexity_info(model, (3, 160, 160), **options)["flops"]
        assert our_count.total - unknown <= theirs <= 1.15 * our_count.total
        totals.append(theirs)
    assert totals[1] < 0.96 * totals[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(merged, x)(x), merged(x), atol=1e-4, rtol=1e-4)
