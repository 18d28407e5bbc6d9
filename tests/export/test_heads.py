"""Whole models as networks of one tensor, against mmdet's and mmseg's own predictions."""

import pytest
import torch
from mmdet.structures import DetDataSample
from torch import nn
from torch.testing import assert_close

from ltm_mm.export import whole_model
from ltm_mm.export.check import _detections
from ltm_mm.export.evaluate import FileDetector
from ltm_mm.export.files import ExportedFile
from ltm_mm.export.reference import ImageDetections, predict, unpack
from tests.export import tiny

SIZE = (97, 131)  # neither is whole steps of 32


@pytest.mark.parametrize("name", tiny.DETECTORS)
def test_detectors_find_what_mmdet_finds(name):
    """The same detections with the same scores, of images that are padded, in a batch."""
    model = tiny.DETECTORS[name]("balanced")
    whole = whole_model(model)
    images = torch.randn(2, 3, *SIZE)
    of_whole = predict(whole, images)
    with torch.no_grad():
        found = unpack(whole(images), whole.metadata, SIZE)
    assert all(len(x.boxes) >= 10 for x in of_whole)
    difference = _detections(of_whole, found, SIZE)
    assert difference.lost == 0
    assert difference.largest < 1e-5
    assert difference.mask_error < 0.001
    assert ("mask IoU" in str(difference)) == (of_whole[0].masks is not None)


@pytest.mark.parametrize("original", [(150, 200), (60, 81)])
@pytest.mark.parametrize("name", ["retinanet", "mask", "mask2former", "maskformer"])
def test_an_evaluated_file_finds_what_mmdet_finds_in_the_original_image(
    name, original, monkeypatch
):
    model = tiny.DETECTORS[name](None)
    whole = whole_model(model)
    image = whole.padded(torch.randn(1, 3, *SIZE))
    scale = (SIZE[1] / original[1], SIZE[0] / original[0])
    padded = tuple(image.shape[2:])
    samples = [
        DetDataSample(metainfo=dict(
            img_shape=SIZE, ori_shape=original, scale_factor=scale, batch_input_shape=padded,
            pad_shape=padded,
        ))
        for _ in range(2)
    ]  # fmt: skip
    file = ExportedFile(torch.no_grad()(whole), whole.metadata, "none")
    monkeypatch.setattr("ltm_mm.export.evaluate._opened", lambda *_: file)
    detector = FileDetector("a.onnx", dict(type="mmdet.DetDataPreprocessor"))
    with torch.no_grad():
        model.predict(image, samples[:1], rescale=True)
    detector(image, samples[1:], mode="predict")
    own, found = (
        ImageDetections(x.bboxes, x.scores, x.labels, x.get("masks"))
        for x in (sample.pred_instances for sample in samples)
    )
    difference = _detections([own], [found], original)
    assert difference.lost == 0
    assert difference.largest < 1e-5
    assert difference.mask_error < 0.001


@pytest.mark.parametrize("name", tiny.SEGMENTORS)
def test_segmentors_give_what_mmseg_gives(name):
    model = tiny.SEGMENTORS[name]("balanced")
    images = torch.randn(2, 3, 96, 128)  # mmseg's heads are given images of whole steps
    metas = [dict(img_shape=(96, 128), ori_shape=(96, 128), pad_shape=(96, 128))] * 2
    with torch.no_grad():
        own = model.encode_decode(images, metas)
        assert_close(whole_model(model)(images), own, rtol=1e-5, atol=1e-5)


def test_fewer_boxes_than_places():
    """A threshold that few pass leaves places with score 0 and label -1."""
    model = tiny.DETECTORS["retinanet"](None)
    images = torch.randn(1, 3, *SIZE)
    whole = whole_model(model)
    scores = predict(whole, images)[0].scores
    model.bbox_head.test_cfg.score_thr = float(scores[4] + scores[5]) / 2
    with torch.no_grad():
        boxes, scores, labels = whole(images)
    of_whole = predict(whole, images)[0]
    assert len(of_whole.boxes) == 5
    assert_close(scores[0], torch.cat((of_whole.scores, torch.zeros(25))))
    assert (labels[0, 5:] == -1).all()
    assert (boxes[0, 5:] == 0).all()


def test_nothing_found():
    model = tiny.DETECTORS["mask"](None)
    model.roi_head.test_cfg.score_thr = 2.0
    whole = whole_model(model)
    with torch.no_grad():
        outputs = whole(torch.randn(1, 3, *SIZE))
    assert (outputs[2] == -1).all()
    (found,) = unpack(outputs, whole.metadata, SIZE)
    assert found.masks.shape == (0, *SIZE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.roi_head.test_cfg.nms.update(type="soft_nms"), "only nms=dict"),
        (lambda m: m.roi_head.test_cfg.update(max_per_img=-1), "fixed number .* max_per_img=-1"),
        (lambda m: m.rpn_head.test_cfg.pop("nms_pre"), "RPNHead: .* nms_pre=None: give one"),
        (lambda m: setattr(m.roi_head.bbox_head.loss_cls, "custom_activation", True), "Shared2FC"),
        (
            lambda m: setattr(m.rpn_head, "__class__", type("MyRPN", (type(m.rpn_head),), {})),
            "MyRPN",
        ),
    ],
)
def test_what_cannot_be_exported_is_named(change, says):
    model = tiny.DETECTORS["faster"](None)
    change(model)
    with pytest.raises(ValueError, match=says):
        whole_model(model)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: setattr(m, "__class__", own_way(m, "encode_decode")), "MyEncoderDecoder"),
        (lambda m: setattr(m.decode_head, "__class__", own_way(m.decode_head, "predict")), "MyFCN"),
        (
            lambda m: setattr(m.data_preprocessor, "test_cfg", dict(size=(512, 512))),
            r"pads images to size=\(512, 512\): only size_divisor",
        ),
    ],
)
def test_what_segmentors_do_in_their_own_way_is_named(change, says):
    model = tiny.SEGMENTORS["fcn"](None)
    change(model)
    with pytest.raises(ValueError, match=says):
        whole_model(model)


def own_way(part: nn.Module, method: str) -> type:
    kind = type(part)
    return type(f"My{kind.__name__}", (kind,), {method: lambda self: None})


@pytest.mark.parametrize("model", [tiny.DETECTORS["retinanet"], tiny.SEGMENTORS["fcn"]])
def test_padding_is_the_preprocessors(model):
    model = model(None)
    model.data_preprocessor.pad_value = 7
    model.data_preprocessor.test_cfg = dict(size_divisor=32)  # of mmseg's
    padded = whole_model(model).padded(torch.zeros(1, 3, 33, 64))
    assert padded.shape == (1, 3, 64, 64)
    assert (padded[:, :, 33:] == 7).all()
    assert not padded[:, :, :33].any()


def test_panoptic_maps_are_refused():
    model = tiny.DETECTORS["mask2former"](None)
    model.panoptic_fusion_head.test_cfg.instance_on = False
    with pytest.raises(ValueError, match="panoptic map, which cannot be exported"):
        whole_model(model)
