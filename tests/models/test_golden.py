"""What backbones give for one photo with weights trained on photos, as it was found once.

Skipped where there are no such weights; for MobileViT there are none. The figures change only
with a change to what is computed, which has to be meant: ``python -m tests.models.test_golden``
prints them anew.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import ltm_mm
from ltm_mm.adapters.maps import backbone_maps
from ltm_mm.errors import UserError
from tools import real_weights

# (network, plan) -> mean of the absolute values of each map, and of its differences to plain's.
GOLDEN: dict[tuple[str, str], tuple[list[float], list[float]]] = {
    ("swin", "light"): ([0.78668, 0.73977, 0.6543, 0.64161], [0, 0, 0.0055484, 0.0020637]),
    ("swin", "balanced"): ([0.78668, 0.73977, 0.65438, 0.6422], [0, 0, 0.02437, 0.0059178]),
    ("swin", "fast"): (
        [0.7867, 0.73978, 0.65073, 0.64296],
        [0.043706, 0.05564, 0.064055, 0.019319],
    ),
    ("vit", "light"): ([2.8266, 3.1626, 3.0569, 2.9471], [0, 0.20892, 0.37286, 0.47065]),
    ("vit", "balanced"): ([2.8266, 3.1662, 3.0615, 2.9489], [0, 0.46618, 0.80468, 0.98806]),
    ("vit", "fast"): ([2.8266, 3.1652, 3.0732, 2.9621], [0, 0.43512, 0.98358, 1.2649]),
    ("efficientvit", "light"): ([1.7649, 2.8445, 2.7072, 1.988], [0, 0, 0.41239, 0.35807]),
    ("efficientvit", "balanced"): ([1.7649, 2.8445, 2.7048, 1.9721], [0, 0, 0.58916, 0.46477]),
    ("efficientvit", "fast"): ([1.7649, 2.8445, 2.7508, 1.9473], [0, 0, 0.96317, 0.84753]),
}
NETWORKS = ("swin", "vit", "efficientvit")


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A trained network, and a photo for it."""
    shared = real_weights.shared_models()
    photo, _ = next(real_weights.photos(shared, name, 1))
    return real_weights.build(shared, name).eval(), photo


@torch.no_grad()
def found(name: str) -> Iterator[tuple[str, list[float], list[float]]]:
    """Each plan's figures."""
    model, photo = network(name)
    plain = backbone_maps(model, photo)
    for plan in ("light", "balanced", "fast"):
        maps = backbone_maps(ltm_mm.apply(model, plan), photo)
        ltm_mm.remove(model)
        sizes = [m.abs().mean().item() for m in maps]
        yield plan, sizes, [(m - p).abs().mean().item() for m, p in zip(maps, plain, strict=True)]


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_as_they_were(name: str) -> None:
    try:
        rows = list(found(name))
    except UserError as error:
        pytest.skip(str(error))
    for plan, sizes, changes in rows:
        golden = GOLDEN[name, plan]
        assert sizes == pytest.approx(golden[0], rel=1e-3), plan
        # Of tokens nearly equally alike rounding may merge others on another machine.
        assert changes == pytest.approx(golden[1], rel=0.03, abs=1e-5), plan


if __name__ == "__main__":
    for one in NETWORKS:
        for plan, *figures in found(one):
            text = "], [".join(", ".join(f"{x:.5g}" for x in values) for values in figures)
            print(f'    ("{one}", "{plan}"): ([{text}]),')
