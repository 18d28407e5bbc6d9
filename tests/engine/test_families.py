"""Real steps of the configs of ViT, MobileViT and the classifiers, through real runners."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ltm_mm.checkpoints import load_backbone
from ltm_mm.engine import InformationBottleneck, MergeStatistics, evaluate, train
from ltm_mm.merging import ChainMerge, Groups, match, rounds
from ltm_mm.models import LTMSwin
from tests.conftest import ROOT

Options = Callable[..., dict[str, object]]
CONFIGS = ROOT / "configs"


def in_process(**changes: object) -> dict[str, object]:
    """No workers, every step logged."""
    options: dict[str, object] = {"default_hooks.logger.interval": 1}
    for part in ("train", "val", "test"):
        options[f"{part}_dataloader.num_workers"] = 0
        options[f"{part}_dataloader.persistent_workers"] = False
    return {**options, **{key.replace("__", "."): value for key, value in changes.items()}}


def losses(work: Path) -> list[float]:
    """Loss of every step, from the log file."""
    log = next(work.glob("*/*.log")).read_text()
    return [float(x) for x in re.findall(r"(?:Epoch|Iter)\(train\).*? loss: ([\d.]+)", log)]


def test_classifier_trains_resumes_and_hands_its_weights_on(shapes: Path, tmp_path: Path) -> None:
    pytest.importorskip("mmpretrain", reason="pip install 'ltm_mm[mmpretrain]'")
    config, work = str(CONFIGS / "ltm_swin_classifier_shapes.py"), str(tmp_path / "work")
    narrow = {"model.backbone.embed_dims": 8, "model.head.in_channels": 64}
    narrow["model.backbone.detail"] = True
    options = in_process(train_dataloader__batch_size=4) | narrow
    for part in ("train", "val", "test"):
        options[f"{part}_dataloader.dataset.data_root"] = str(shapes)
    options |= {"train_cfg.max_epochs": 1, "train_cfg.val_interval": 1}
    runner = train(config, work, cfg_options=options)
    assert runner.iter == len(losses(tmp_path / "work")) >= 2
    metrics = evaluate(config, f"{work}/epoch_1.pth", work, cfg_options=options)
    assert 0 <= metrics["accuracy/top1"] <= 100

    backbone = LTMSwin(embed_dims=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), detail=True)
    report = load_backbone(backbone, f"{work}/epoch_1.pth")
    assert all(re.match(r"norm[0-2]\.", key) for key in report.fresh)
    trained = runner.model.backbone.stages[2].blocks[1].merge.detail.up.weight
    assert trained.abs().max() > 0
    assert torch.equal(backbone.stages[2].blocks[1].merge.detail.up.weight, trained)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["swin", "vit", "efficientvit", "mobilevit"])
def test_imagenet_recipes_take_a_step(family: str, shapes: Path, tmp_path: Path) -> None:
    """The standard recipe on a list of shapes instead of ImageNet: mix-up, RandAugment and all."""
    pytest.importorskip("mmpretrain", reason="pip install 'ltm_mm[mmpretrain]'")
    # Its schedule starts after 20 epochs of warm-up.
    options = in_process(train_cfg__max_epochs=1, train_cfg__val_interval=1, param_scheduler=None)
    for part, split in (("train", "train"), ("val", "val"), ("test", "val")):
        files = sorted((shapes / split).glob("*.png"))
        listed = tmp_path / f"{split}.txt"
        listed.write_text("\n".join(f"{f.name} {7 * i}" for i, f in enumerate(files)))
        dataset = f"{part}_dataloader.dataset"
        options |= {f"{part}_dataloader.batch_size": 2, f"{dataset}.split": ""}
        options |= {f"{dataset}.data_root": str(shapes), f"{dataset}.ann_file": str(listed)}
        options[f"{dataset}.data_prefix"] = split
    train(str(CONFIGS / f"ltm_{family}_imagenet.py"), str(tmp_path / "w"), cfg_options=options)
    values = losses(tmp_path / "w")
    assert len(values) == 2
    assert all(0 < loss < 20 for loss in values)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ltm_vit_maskrcnn", "ltm_mobilevit_ssdlite"])
def test_standard_detectors_on_real_coco_images(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    """Full width; fewer images and proposals, and smaller images for the ViT."""
    coco = shared_data / "coco_mini"
    if not coco.is_dir():
        pytest.skip(f"no coco_mini in {shared_data}")
    options = in_process(train_cfg__max_epochs=1, train_cfg__val_interval=1)
    inner = "dataset.dataset" if "ssdlite" in name else "dataset"
    for part in ("train", "val", "test"):
        dataset = f"{part}_dataloader.{inner if part == 'train' else 'dataset'}"
        options |= {f"{part}_dataloader.batch_size": 2, f"{dataset}.data_root": str(coco)}
        options[f"{dataset}.indices"] = 4
        if part != "train":
            file = coco / "annotations/instances_val2017.json"
            options[f"{part}_evaluator.ann_file"] = str(file)
    if "ssdlite" in name:
        options |= {"train_dataloader.dataset.times": 1, "model.test_cfg.score_thr": 0.0}
    else:
        options |= {
            "train_dataloader.dataset.pipeline.2.scale": (448, 320),
            "val_dataloader.dataset.pipeline.1.scale": (448, 320),
            "model.train_cfg.rpn_proposal.max_per_img": 20,
            "model.train_cfg.rcnn.sampler.num": 8,
            "model.test_cfg.rpn.max_per_img": 20,
            "model.test_cfg.rcnn.score_thr": 0.0,
        }
    work = tmp_path / "work"
    train(str(CONFIGS / f"{name}.py"), str(work), cfg_options=options)
    values = losses(work)
    assert len(values) == 2
    assert all(0 < loss < 100 for loss in values)
    assert "bbox_mAP" in next(work.glob("*/*.log")).read_text()


@pytest.mark.slow
def test_standard_segmentor_on_real_ade20k_images(shared_data: Path, tmp_path: Path) -> None:
    """ViT-B and UPerNet at full width; smaller crops."""
    ade = shared_data / "ade20k_mini"
    if not ade.is_dir():
        pytest.skip(f"no ade20k_mini in {shared_data}")
    options = in_process(train_cfg__max_iters=2, train_cfg__val_interval=2)
    for part in ("train", "val", "test"):
        options[f"{part}_dataloader.dataset.data_root"] = str(ade)
        options[f"{part}_dataloader.batch_size"] = 2 if part == "train" else 1
    options |= {
        "model.decode_head.norm_cfg.type": "BN",  # SyncBN needs a GPU
        "model.auxiliary_head.norm_cfg.type": "BN",
        "model.data_preprocessor.size": (256, 256),
        "train_dataloader.dataset.pipeline.3.crop_size": (256, 256),
        "val_dataloader.dataset.indices": 1,
        "val_dataloader.dataset.pipeline.1.scale": (512, 256),
    }
    work = tmp_path / "work"
    train(str(CONFIGS / "ltm_vit_upernet.py"), str(work), cfg_options=options)
    values = losses(work)
    assert len(values) == 2
    assert all(0 < loss < 50 for loss in values)
    assert "mIoU" in next(work.glob("*/*.log")).read_text()


def test_hooks_see_every_grid_of_mobilevit(shapes: Path, tmp_path: Path) -> None:
    """It merges four grids per image: each gets its image's ground truth."""
    config, work = str(CONFIGS / "ltm_mobilevit_ssdlite_shapes.py"), str(tmp_path / "work")
    options = in_process(train_cfg__max_epochs=1, train_cfg__val_interval=1)
    for part in ("train", "val", "test"):
        options[f"{part}_dataloader.dataset.data_root"] = str(shapes)
        options[f"{part}_dataloader.batch_size"] = 2
    for part in ("val", "test"):
        file = str(shapes / "annotations" / "instances_val.json")
        options[f"{part}_evaluator.ann_file"] = file
    options["custom_hooks"] = [
        dict(type="ltm_mm.MergeStatistics", tokens_per_image=20),
        dict(type="ltm_mm.InformationBottleneck", warmup=0.0),
    ]
    runner = train(config, work, cfg_options=options)
    scalars = runner.message_hub.log_scalars
    assert scalars["train/loss_ib"].current() > 0
    assert 0 < scalars["val/ltm/0/asa"].current() < 1
    hook = next(h for h in runner.hooks if isinstance(h, MergeStatistics))
    assert all(len(t) == 20 for tokens in hook.tokens.values() for t, _ in tokens)


@pytest.mark.parametrize("grids", [1, 4])
def test_labels_of_grids(grids: int) -> None:
    """Tokens say which image they are of: their labels are this image's."""
    hook = InformationBottleneck(num_classes=4)
    given = {}
    hook._loss_of = lambda *_: (
        lambda merged, labels, inputs: (
            given.update(merged=merged, labels=labels, inputs=inputs) or merged.sum()
        )
    )
    images = torch.arange(3).view(3, 1, 1)
    tokens = images.repeat_interleave(grids, 0).float().expand(-1, 16, 1)
    mask = Groups.of(match(tokens, rounds(16, 4)), None, tokens.dtype)
    merge = ChainMerge(tokens, mask.merge(tokens), mask, (4, 4))
    hook._bounds([("m", merge)], images.expand(3, 32, 32))
    assert given["labels"].tolist() == given["merged"][:, 0].round().int().tolist()
    assert given["inputs"][:, 0].int().tolist() == given["labels"].tolist()
    assert len(given["labels"]) == 3 * grids * 4
