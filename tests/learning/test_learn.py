"""Learning what merging loses: in memory, for every library; files; the loop."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import ltm_mm
from ltm_mm.adapters.copies import shared_copy
from ltm_mm.adapters.families import swin_stages
from ltm_mm.checkpoints.learned import Learned, save_whole, weights_digest
from ltm_mm.learning import Progress, Settings
from ltm_mm.learning.distill import DIVERGED, at_least, draw_crops, map_loss
from ltm_mm.learning.learn import Lesson, default_train, hold_out
from ltm_mm.models import LTMSwin, LTMViT
from tests.adapters.sources import build, outputs
from tests.models.contract import settled

LIBRARIES = ["timm", "torchvision v2", "official detector"]  # other tests learn with mmdet's
LIBRARIES += [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("mmdet", "mmpretrain", "timm v2", "torchvision")
]
SHORT = Settings(steps=8, crop=224, lr=2e-4, detail_lr=1e-2, batch_size=1)


def photos(count: int = 3, size: tuple[int, int] = (224, 224)) -> list[torch.Tensor]:
    """Pictures of some structure: few colours, in patches."""
    generator = torch.Generator().manual_seed(4)
    coarse = torch.randn(count, 3, 14, 14, generator=generator)
    fine = 0.3 * torch.randn(count, 3, *size, generator=generator)
    return list(nn.functional.interpolate(coarse, size) + fine)


def learn(model: nn.Module, train: str, keep: object = 9) -> Learned:
    return ltm_mm.learn(model, photos(), keep, train, SHORT, progress_bar=False)


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_library_learns_applies_and_gives_back(library, tmp_path):
    model = build(library)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plain = outputs(model)
    learned = learn(model, "all")
    assert learned.details
    assert learned.weights
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    learned.save(tmp_path / "learned.pth")
    merged = outputs(ltm_mm.apply(model, 9))
    ltm_mm.remove(model)
    merged_outputs = [outputs(ltm_mm.apply(model, 9, detail=learned))]
    ltm_mm.remove(model)
    merged_outputs.append(outputs(ltm_mm.apply(model, 9, detail=tmp_path / "learned.pth")))
    ltm_mm.remove(model)
    assert all(torch.equal(a, b) for a, b in zip(*merged_outputs, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(merged_outputs[0], merged, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), plain, strict=True))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "train", ["detail", "all", pytest.param("weights", marks=pytest.mark.slow)]
)
def test_what_is_learned_lowers_the_loss_on_what_is_held_out(train):
    learned = learn(build("mmdet"), train, ("balanced", "fast"))
    losses = learned.history["held_out"]
    assert min(losses.values()) < 0.98 * losses[0]
    assert learned.plans == ("balanced", "fast")
    assert bool(learned.details) == (train != "weights")
    assert (learned.weights is None) == (train == "detail")


def test_rates_that_are_too_large_are_backed_off():
    """Where the held-out loss rises far above its start, learning begins anew with less."""
    model = build("timm")
    lesson = Lesson(lambda plan: _merged(model, plan), {"9": 9}, "weights", 0)
    progress = lesson.learn(
        *hold_out([photo[None] for photo in photos()]),
        Settings(steps=12, crop=224, lr=0.05, batch_size=1),
    )
    losses = list(progress.held_out.values())
    assert max(losses[1:3]) > DIVERGED * losses[0]
    assert progress.rate < 1
    assert losses[-1] < max(losses)


def rate_of(model: nn.Module, *plans: int) -> float:
    """What weights of a model learn with for plans; the model stays as it was, to the bit."""

    def with_plan(plan: int | None) -> nn.Module:
        copy = shared_copy(model)
        if plan is not None:
            ltm_mm.apply(copy, plan)
        copy.train(False)
        return copy

    lesson = Lesson(with_plan, {str(plan): plan for plan in plans}, "weights", 0)
    weights = list(model.parameters())
    before = [weight.clone() for weight in weights]
    rate = lesson.rate_of_weights(weights, torch.stack(photos(2)))
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))
    return rate


def test_what_is_trained_by_default():
    for plan, expected in dict(light="weights", balanced="weights", fast="all").items():
        assert default_train({plan: plan}, swin=True) == expected
        assert default_train({plan: plan}, swin=False) == "weights"
    assert default_train({"mine": (None, 25, 9, 5)}, swin=True) == "all"
    assert default_train({plan: plan for plan in ("light", "fast")}, swin=True) == "detail"


def test_the_rate_of_weights_follows_from_plan_and_network():
    model = build("timm")
    light, far = rate_of(model, 37), rate_of(model, 5)
    assert 1e-7 < light < far / 1.2 < 0.1
    assert rate_of(model, 5, 37) == light  # the plan that loses least
    steep = build("timm")
    for weight in steep.parameters():
        weight.data /= 4  # so that a step is four times as large beside it
    assert rate_of(steep, 37) < light / 1.5


def test_a_detail_learned_in_one_library_serves_another():
    ours, theirs = build("mmdet"), build("mmseg")
    learned = learn(ours, "detail")
    theirs.load_state_dict(ours.state_dict())
    expected = outputs(ltm_mm.apply(ours, 9, detail=learned))
    found = outputs(ltm_mm.apply(theirs, 9, detail=learned))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_backbone_of_ours_takes_the_file_and_a_checkpoint_brings_it(tmp_path):
    mm = build("mmdet")
    learned = learn(mm, "detail")
    learned.save(tmp_path / "detail.pth")
    arguments = dict(embed_dims=16, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8), keep=9)
    model = LTMSwin(**arguments, detail=str(tmp_path / "detail.pth")).eval()
    model.load_state_dict(mm.state_dict(), strict=False)
    expected = outputs(ltm_mm.apply(mm, 9, detail=learned))
    assert_close(outputs(model), expected, rtol=1e-5, atol=1e-5)
    other = LTMSwin(**arguments).eval()
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(outputs(other), outputs(model), strict=True))


def test_a_fresh_detail_of_a_backbone_learns_with_the_rest():
    model = LTMSwin(embed_dims=16, depths=(2, 2), num_heads=(1, 2), strides=(4, 2), keep=9,
                    out_indices=(0, 1), detail=True)  # fmt: skip
    details = [p for name, p in model.named_parameters() if ".merge.detail." in name]
    assert len(details) == 3 * 4
    sum(m.square().sum() for m in model(torch.randn(1, 3, 64, 64))).backward()
    up = [p for name, p in model.named_parameters() if name.endswith("detail.up.weight")]
    assert all(p.grad.abs().sum() > 0 for p in up)


def test_a_file_of_another_width_is_refused_and_nothing_is_left_half_done(tmp_path):
    model = build("timm")
    before = outputs(model)
    learned = learn(build("mmdet"), "detail")
    learned.widths = (24, 48, 96, 192)
    with pytest.raises(ValueError, match=r"belongs to a Swin of widths \(24, 48, 96, 192\)"):
        ltm_mm.apply(model, 9, detail=learned)
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), before, strict=True))
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    with pytest.raises(ValueError, match="holds no learned detail"):
        ltm_mm.apply(model, 9, detail=tmp_path / "plain.pth")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ltm_mm.apply(model, 9, detail=tmp_path / "nowhere.pth")


def test_other_weights_than_those_it_was_learned_on_are_warned_of(monkeypatch):
    said = []
    monkeypatch.setattr("ltm_mm.checkpoints.learned.print_log", lambda text, *_: said.append(text))
    model = build("mmdet")
    learned = learn(model, "detail")
    ltm_mm.apply(model, 9, detail=learned)
    assert said == []
    ltm_mm.remove(model)
    nn.init.normal_(model.stages[0].blocks[0].norm1.weight)
    assert weights_digest(swin_stages(model)) != learned.digest
    ltm_mm.apply(model, 9, detail=learned)
    assert len(said) == 1
    assert "learned on other weights" in said[0]


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "learned.pth"
    file.write_bytes(b"before")

    def fail(*_: object) -> None:
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=r"learned.pth cannot be written .*disk full"):
        save_whole({}, file)
    assert file.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [file]


def test_models_that_have_no_detail():
    vit = settled(LTMViT("tiny", img_size=64, num_layers=2, embed_dims=32, num_heads=2, keep=None))
    with pytest.raises(ValueError, match="has no Swin blocks"):
        Lesson(lambda plan: vit, {"fast": "fast"}, "detail", 0)
    with pytest.raises(ValueError, match="train must be one of detail, weights, all, got 'x'"):
        ltm_mm.learn(vit, photos(), train="x")
    with pytest.raises(ValueError, match="keep must name plans that merge"):
        ltm_mm.learn(build("mmdet"), photos(), keep=None)


@pytest.mark.parametrize("keep", ["none", 49, {"all": (None, None, None, None)}])
def test_a_plan_that_merges_nothing_is_refused_before_it_learns(keep):
    with pytest.raises(ValueError, match="merges nothing in this model"):
        ltm_mm.learn(build("mmdet"), photos(), keep)


FINE = torch.rand(3, 56, 56)
NO_IMAGES = {
    "path": ["a.jpg", "b.jpg"],
    "text": "photos",
    "number": 5,
    "numpy": [FINE.numpy()] * 3,
    "with labels": [(FINE, 0)] * 3,
    "bytes": [(255 * FINE).byte()] * 3,
    "no channels": [FINE[0]] * 3,
    "empty": [FINE[:, :0]] * 3,
    "not finite": [FINE, FINE / 0],
}


@pytest.mark.parametrize("images", NO_IMAGES.values(), ids=NO_IMAGES)
@pytest.mark.parametrize("function", [ltm_mm.learn, ltm_mm.fidelity])
def test_what_is_no_image(function, images):
    with pytest.raises(ValueError, match="images must be") as error:
        function(build("torchvision"), images)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("function", [ltm_mm.learn, ltm_mm.fidelity])
def test_what_is_no_model(function):
    with pytest.raises(ValueError, match="model must be a built model"):
        function(None, photos())


def test_settings_are_settings():
    with pytest.raises(ValueError, match=r"settings must be ltm_mm\.learning\.Settings"):
        ltm_mm.learn(build("mmdet"), photos(), settings=dict(steps=3))


def test_learning_works_in_inference_mode():
    with torch.inference_mode():
        learned = ltm_mm.learn(build("mmdet"), photos(), 9, "all", SHORT, progress_bar=False)
    assert learned.weights


def test_two_photos_are_needed():
    with pytest.raises(ValueError, match="two photos at least"):
        ltm_mm.learn(build("mmdet"), photos(1))
    learn_from, judge_by = hold_out(list(range(40)))
    assert (len(learn_from), judge_by) == (36, [0, 10, 20, 30])
    assert hold_out([1, 2]) == ([2], [1])
    assert len(hold_out(list(range(1000)))[1]) == 16


def test_an_interrupt_keeps_the_best_and_going_on_ends_where_one_run_does():
    model = build("mmdet")

    def run(progress=None, until=None):
        torch.manual_seed(0)
        lesson = Lesson(lambda k: _merged(model, k), {"9": 9}, "detail", seed=0)

        def stop(now):
            if now.step == until:
                raise KeyboardInterrupt

        pair = hold_out([p[None] for p in photos()])
        progress_at_end = lesson.learn(*pair, SHORT, progress, stop)
        return progress_at_end, [p.clone() for d in lesson.details.values() for p in d.parameters()]

    whole, expected = run()
    part, _ = run(until=4)
    assert part.step == 4
    assert part.held_out[4] < part.held_out[0]
    again, continued = run(Progress(**vars(part)))
    assert again.losses == pytest.approx(whole.losses, rel=1e-4)
    assert_close(continued, expected, rtol=1e-4, atol=1e-6)


def _merged(model, plan):
    from ltm_mm.adapters.copies import shared_copy

    copy = shared_copy(model)
    return copy if plan is None else ltm_mm.apply(copy, plan)


def test_a_loss_that_is_not_finite_ends_it():
    model = build("mmdet")
    for parameter in model.parameters():
        parameter.data[:] = float("nan")
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        learn(model, "detail")


def test_learning_that_does_not_help_says_so():
    with pytest.raises(ValueError, match="learning did not help"):
        ltm_mm.learn(build("mmdet"), photos(), 9, "weights",
                     Settings(steps=2, crop=224, lr=0.9, checks=2), False)  # fmt: skip


def test_loss_by_hand():
    taught = [torch.tensor([[[[3.0, 4.0]]]]), torch.ones(1, 1, 1, 1)]
    maps = [torch.tensor([[[[3.0, 9.0]]]]), torch.tensor([[[[3.0]]]])]
    assert map_loss(maps, taught).item() == pytest.approx(25 / 25 + 4)


def test_crops_are_of_one_size_and_small_photos_scaled_up():
    import random

    small, wide = torch.rand(1, 3, 20, 30), torch.rand(1, 3, 300, 90)
    assert at_least(small, 64).shape == (1, 3, 64, 96)
    assert at_least(wide, 64) is wide
    crops = draw_crops([small, wide], Settings(crop=64, batch_size=5), random.Random(0))
    assert crops.shape == (5, 3, 64, 64)


@pytest.mark.parametrize("options", [{"steps": 0}, {"lr": 2.0}, {"crop": 1.5}, {"detail_lr": 0}])
def test_settings_are_checked(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} must"):
        Settings(**options)
