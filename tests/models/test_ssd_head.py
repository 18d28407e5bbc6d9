"""mmdet's SSDHead predicts."""

import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope

from ltm_mm.engine import load_config
from ltm_mm.registry import MODELS
from tests.conftest import ROOT


def test_predicts_and_is_mmdets_otherwise():
    init_default_scope("mmdet")
    model = load_config(ROOT / "configs" / "ltm_mobilevit_ssdlite_shapes.py").model
    cfg = ConfigDict(model.bbox_head, test_cfg=model.test_cfg)
    head = MODELS.build(cfg).eval()
    plain = MODELS.build(ConfigDict(cfg, type="mmdet.SSDHead")).eval()
    assert type(head) is type(plain)
    plain.load_state_dict(head.state_dict())
    sizes = (20, 10, 5, 3)
    maps = [torch.randn(1, c, s, s) for c, s in zip(cfg.in_channels, sizes, strict=True)]
    with torch.no_grad():
        for ours, theirs in zip(head(maps), plain(maps), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        sample = DetDataSample(metainfo=dict(img_shape=(160, 160), scale_factor=(1, 1)))
        (predicted,) = head.predict(maps, [sample])
    assert len(predicted) > 0
    assert predicted.bboxes.isfinite().all()
