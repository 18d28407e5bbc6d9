"""The contract every backbone keeps. A family's test subclasses it and gives builders."""

import copy
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

SIZES = [(2, 64, 64), (1, 96, 160), (1, 75, 117), (1, 33, 34)]


def randomise(model: nn.Module) -> nn.Module:
    """Give every parameter a random part: nothing at a start that cancels (zeros, ones)."""
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
        parameter.data = parameter.data + 0.05 * noise
    return model


class BackboneContract:
    """Laws of a backbone with merging.

    A subclass defines ``build(**kwargs)`` (tiny; default arguments but width and
    depth), ``reference()`` (the plain model with its own parameter names; the tiny
    width; returns maps), ``load_reference(model, reference)`` and ``plans``, and how many
    ``stages`` it has and how many entries (``planned``) a plan. All stages' maps are the
    built model's default. Where ``one_plan_per_map`` is false, ``unmerge`` is for the
    family's own tests.
    """

    stages: ClassVar[int] = 4
    planned: ClassVar[int] = 4
    one_plan_per_map: ClassVar[bool] = True
    plans: ClassVar[list] = ["light", "balanced", "fast"]

    def build(self, **kwargs: object) -> nn.Module:
        raise NotImplementedError

    def reference(self) -> nn.Module:
        raise NotImplementedError

    def load_reference(self, model: nn.Module, reference: nn.Module, strict: bool) -> object:
        return model.load_state_dict(reference.state_dict(), strict=strict)

    def branch_ends(self, model: nn.Module) -> list[nn.Module]:
        """Last layers of all residual branches outside mask modules."""
        raise NotImplementedError

    def maps(self, model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(model(x))

    def image(self, batch: int, height: int, width: int) -> Tensor:
        return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(7))

    @pytest.mark.parametrize(("batch", "height", "width"), SIZES)
    def test_equals_the_reference_without_merging(self, batch, height, width):
        reference = randomise(self.reference())
        reference.train(False)  # mmdet's returns None
        model = self.build(slots=None).eval()
        self.load_reference(model, reference, strict=True)
        x = self.image(batch, height, width)
        found, expected = self.maps(model, x), self.maps(reference, x)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b, rtol=1e-5, atol=1e-5)

    def test_loads_the_reference_with_only_masks_missing(self):
        model = self.build(slots="fast")
        result = self.load_reference(model, self.reference(), strict=False)
        assert not result.unexpected_keys
        assert result.missing_keys
        assert all(".merge." in key for key in result.missing_keys)

    @pytest.mark.parametrize(("batch", "height", "width"), SIZES)
    def test_maps_have_the_declared_shapes(self, batch, height, width):
        for plan in self.plans:
            model = self.build(slots=plan).eval()
            maps = self.maps(model, self.image(batch, height, width))
            assert isinstance(maps, tuple)
            expected = self.maps(self.build(slots=None).eval(), self.image(batch, height, width))
            assert [m.shape for m in maps] == [m.shape for m in expected]
            for m, channels, stride in zip(maps, model.out_channels, model.strides, strict=True):
                assert m.shape[:2] == (batch, channels)
                assert m.shape[2:] == (-(-height // stride), -(-width // stride))
                assert m.isfinite().all()

    @pytest.mark.parametrize(("batch", "height", "width"), SIZES)
    def test_slots_are_returned_where_nothing_is_unmerged(self, batch, height, width):
        if not self.one_plan_per_map:
            pytest.skip("has no stage whose slots could be a map")
        state = randomise(self.build(slots=None)).state_dict()
        x = self.image(batch, height, width)
        for plan in self.plans:
            full, slots = (
                self.build(slots=plan, unmerge=unmerge).eval() for unmerge in ("residual", "none")
            )
            for model in (full, slots):
                model.load_state_dict(state, strict=False)
            counts = [c[-1] if c else full.plan_window for c in full.plan]
            merges = [i for i in full.out_indices if counts[i] < full.plan_window]
            assert merges
            for i, a, b in zip(
                full.out_indices, self.maps(full, x), self.maps(slots, x), strict=True
            ):
                k = full.out_indices.index(i)
                if i not in merges:
                    assert slots.strides[k] == full.strides[k]
                    assert_close(a, b, rtol=0, atol=0)
                    continue
                s, w = counts[i], full.plan_window
                assert slots.strides[k] == full.strides[k] * w / s
                size = list(a.shape[2:])
                for before, after in pairwise((w, *full.plan[i])):
                    size = [-(-n * after // before) for n in size]
                assert list(b.shape[2:]) == size
                assert b.isfinite().all()
        plain = [self.build(slots=None, unmerge=u).eval() for u in ("residual", "none")]
        plain[1].load_state_dict(plain[0].state_dict())
        for a, b in zip(*(self.maps(m, x) for m in plain), strict=True):
            assert_close(a, b, rtol=0, atol=0)

    def test_plain_unmerging_loses_detail(self):
        if not self.one_plan_per_map:
            pytest.skip("has no unmerge")
        state, x = randomise(self.build(slots=None)).state_dict(), self.image(1, 96, 160)
        maps = []
        for plan in (None, self.plans[0]):
            for unmerge in ("residual", "plain"):
                model = self.build(slots=plan, unmerge=unmerge).eval()
                model.load_state_dict(state, strict=False)
                maps.append(self.maps(model, x))
        assert_close(maps[0], maps[1], rtol=0, atol=0)
        assert [m.shape for m in maps[2]] == [m.shape for m in maps[3]]
        assert (maps[2][-1] - maps[3][-1]).abs().max() > 1e-4

    def test_every_preset_changes_the_output(self):
        state = randomise(self.build(slots=None)).state_dict()
        x, seen = self.image(1, 96, 160), []
        for plan in [None, *self.plans]:
            model = self.build(slots=plan).eval()
            model.load_state_dict(state, strict=False)
            seen.append(self.maps(model, x)[-1])
        for i, a in enumerate(seen):
            for b in seen[i + 1 :]:
                assert (a - b).abs().max() > 1e-4

    def test_merging_alone_changes_nothing(self):
        """With every branch after a merge silent, merge and unmerge cancel."""
        plain = randomise(self.build(slots=None)).eval()
        for end in self.branch_ends(plain):
            for parameter in end.parameters():
                nn.init.zeros_(parameter)
        x = self.image(2, 75, 117)
        for plan in self.plans:
            merged = randomise(self.build(slots=plan)).eval()
            merged.load_state_dict(plain.state_dict(), strict=False)
            for a, b in zip(self.maps(merged, x), self.maps(plain, x), strict=True):
                assert_close(a, b, rtol=1e-5, atol=1e-5)

    def test_an_image_does_not_depend_on_its_batch(self):
        model = randomise(self.build(slots="fast")).eval()
        x = self.image(3, 75, 117)
        together = self.maps(model, x)
        for i in range(3):
            for a, b in zip(self.maps(model, x[i : i + 1]), together, strict=True):
                # Sharp masks amplify the rounding of single precision.
                assert_close(a, b[i : i + 1], rtol=1e-4, atol=1e-4)

    def test_every_parameter_gets_a_gradient(self):
        model = randomise(self.build(slots="fast")).train()
        torch.manual_seed(0)
        sum(m.square().mean() for m in model(self.image(2, 96, 117))).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name

    def test_checkpointing_changes_nothing_but_memory(self):
        x = self.image(1, 64, 75)
        results = []
        state = randomise(self.build(slots="fast")).state_dict()
        for with_cp in (False, True):
            model = self.build(slots="fast", with_cp=with_cp, **self.deterministic()).train()
            model.load_state_dict(state)
            maps = model(x.requires_grad_())
            sum(m.square().mean() for m in maps).backward()
            results.append([*maps, *(p.grad for p in model.parameters())])
        for a, b in zip(*results, strict=True):
            assert_close(a, b, rtol=1e-5, atol=1e-6)

    def deterministic(self) -> dict:
        """Keywords that switch random layers off."""
        return {}

    def test_forward_leaves_nothing_behind(self):
        model = self.build(slots="fast").eval()
        before = {name: set(vars(m)) for name, m in model.named_modules()}
        state = copy.deepcopy(model.state_dict())
        self.maps(model, self.image(1, 75, 117))
        assert {name: set(vars(m)) for name, m in model.named_modules()} == before
        for key, value in model.state_dict().items():
            assert_close(value, state[key], rtol=0, atol=0)

    def test_out_indices_choose_the_maps(self):
        whole = randomise(self.build(slots="fast")).eval()
        some = self.build(slots="fast", out_indices=(1, 3)).eval()
        some.load_state_dict(whole.state_dict(), strict=False)
        x = self.image(1, 64, 75)
        expected = self.maps(whole, x)
        for a, b in zip(self.maps(some, x), (expected[1], expected[3]), strict=True):
            assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert some.out_channels == tuple(whole.out_channels[i] for i in (1, 3))
        assert some.strides == tuple(whole.strides[i] for i in (1, 3))

    def test_frozen_stages_stay_as_they_are(self):
        for frozen in (-1, 0, 2):
            model = self.build(slots="fast", frozen_stages=frozen)
            assert model.train() is model
            assert model.training
            sum(m.square().mean() for m in model(self.image(2, 64, 75))).backward()
            still = {n for n, p in model.named_parameters() if p.grad is None}
            expected = {
                n
                for n, _ in model.named_parameters()
                if frozen >= 0
                and (self.is_stem(n) or any(self.in_stage(n, i) for i in range(frozen)))
            }
            assert still == expected
            assert not any(
                m.training for name, m in model.named_modules() if name and name + "." in expected
            )

    def is_stem(self, name: str) -> bool:
        raise NotImplementedError

    def in_stage(self, name: str, stage: int) -> bool:
        """Whether a parameter belongs to a stage, its output norm included."""
        raise NotImplementedError

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_autocast_is_finite_and_near(self, dtype):
        x = self.image(1, 75, 117)
        for plan in [None, "light", "balanced", "fast"]:
            model = randomise(self.build(slots=plan)).eval()
            exact = self.maps(model, x)
            with torch.autocast("cpu", dtype=dtype):
                half = self.maps(model, x)
            for a, b in zip(half, exact, strict=True):
                assert a.isfinite().all()
                assert (a.float() - b).norm() / b.norm() < 0.05

    def test_results_do_not_depend_on_the_thread_count(self):
        model = randomise(self.build(slots="fast")).eval()
        x, found, before = self.image(2, 96, 160), [], torch.get_num_threads()
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found.append(self.maps(model, x))
        finally:
            torch.set_num_threads(before)
        for a, b in zip(*found, strict=True):
            assert_close(a, b, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            (dict(slots="quick"), "unknown slots preset 'quick': choose from light, balanced"),
            (dict(slots=(None, 3)), "one entry for each of the"),
            (dict(slots=7), "one entry for each of the"),
            (dict(slots="balanced", steps=-1), "steps must be an integer >= 0, got -1"),
            (dict(arch="huge"), "unknown arch 'huge': choose from"),
            (dict(out_indices=(9,)), "out_indices must name stages from 0 to {last}, got"),
            (dict(frozen_stages=9), "frozen_stages must lie in -1..{stages}, got 9"),
            (dict(init_cfg=dict(type="Xavier")), "init_cfg must be None or dict"),
        ],
    )
    def test_bad_arguments_get_one_clear_line(self, kwargs, message):
        message = message.format(stages=self.stages, last=self.stages - 1)
        with pytest.raises(ValueError, match=message) as error:
            self.build(**kwargs)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            (99, "99 is not an int from 1 to the window size"),
            (0, "0 is not an int from 1"),
            (2.5, "2.5"),
        ],
    )
    def test_a_bad_plan_gets_one_clear_line(self, entry, message):
        with pytest.raises(ValueError, match=message) as error:
            self.build(slots=(None,) * (self.planned - 1) + (entry,))
        assert "\n" not in str(error.value)

    def test_a_bad_unmerge_gets_one_clear_line(self):
        if self.one_plan_per_map:
            with pytest.raises(
                ValueError, match="unmerge must be one of residual, plain, none, got 'all'"
            ):
                self.build(unmerge="all")
