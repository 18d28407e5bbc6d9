"""Merging classifiers and feature extractors under names of timm's registry.

    import ltm_mm.timm_models
    timm.create_model("ltm_swin_tiny", pretrained=True, keep="balanced")
    timm.create_model("ltm_vit_small", features_only=True)

and in timm's own training scripts, which do not import ltm_mm themselves:

    python -m ltm_mm.timm_models path/to/timm/train.py --model ltm_swin_tiny \
        --model-kwargs keep=paper ...

A model ``ltm_*`` is timm's plain one after :func:`ltm_mm.apply`: its only parameters are the plain
ones (``pretrained=True`` loads timm's weights) and those of an EfficientViT's masks. It takes
timm's keywords, and ``keep`` and ``window_size`` of ``apply``; ``keep="none"`` (timm drops keywords
that are None) is the plain model. Its checkpoints load into the backbones here (``init_cfg``).
"""

import runpy
import sys
from collections.abc import Callable
from importlib import import_module

from timm.models import model_entrypoint, register_model
from torch import nn

from ltm_mm.adapters import apply
from ltm_mm.families import FAMILIES
from ltm_mm.presets import Keep

PLAIN = {
    f"ltm_{family.name}_{arch}": family.in_timm(arch)
    for family in FAMILIES.values()
    for arch in family.archs
    if family.timm
}


def _register(name: str, plain: str) -> Callable[..., nn.Module]:
    """Register a model with timm, whose registry uses the function's name."""

    def build(
        pretrained: bool = False,
        keep: Keep = "balanced",
        window_size: int | None = None,
        **options: object,
    ) -> nn.Module:
        model = model_entrypoint(plain)(pretrained=pretrained, **options)
        return apply(model, None if keep == "none" else keep, window_size)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"timm's {plain} with token merging; see :mod:`ltm_mm.timm_models`."
    return register_model(build)


def _run_script() -> None:
    """Run a script with the names registered."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m ltm_mm.timm_models SCRIPT [its arguments]")
    import_module("ltm_mm.timm_models")
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    _run_script()  # this file is imported once more there, under its own name
else:
    for _name, _plain in PLAIN.items():
        globals()[_name] = _register(_name, _plain)
