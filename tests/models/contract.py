"""The contract every backbone keeps. A family's test subclasses it and gives builders."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ltm_mm.checkpoints import load_backbone
from ltm_mm.kernels import use_kernels
from ltm_mm.merging import record_merges
from ltm_mm.merging.matching import Matched, match

SIZES = [(2, 64, 64), (1, 96, 160), (1, 75, 117), (1, 33, 34)]
sizes = pytest.mark.parametrize(("batch", "height", "width"), SIZES)


def randomise(model: nn.Module) -> nn.Module:
    """Give every parameter a random part: nothing at a start that cancels (zeros, ones)."""
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
        parameter.data = parameter.data + 0.05 * noise
    return model


def settled(model: nn.Module) -> nn.Module:
    """A backbone whose parameters are random and whose maps tell images apart.

    Batch normalisation gets the statistics of some images.
    """
    randomise(model)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        model.train()
        with torch.no_grad():
            model(torch.randn(8, 3, 96, 96, generator=torch.Generator().manual_seed(3)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def use_match(monkeypatch: pytest.MonkeyPatch, match: Callable[..., Matched]) -> None:
    """Let all blocks find their groups by another function."""
    monkeypatch.setattr("ltm_mm.merging.masks.match", match)
    monkeypatch.setattr("ltm_mm.models.backbones.global_blocks.match", match)


@contextmanager
def same_groups(device: str = "cpu") -> Iterator[Callable[[], None]]:
    """From the call of what this yields on, blocks have the groups of before, one by one.

    Where tokens are nearly equally alike, rounding decides; this leaves that out. ``device`` is
    where they are wanted then.
    """
    matches: list[Matched] = []

    def remember(*args: object, **kwargs: object) -> Matched:
        matches.append(match(*args, **kwargs))
        return matches[-1]

    with pytest.MonkeyPatch.context() as patch:
        use_match(patch, remember)
        yield lambda: use_match(patch, lambda *_, **__: _moved(matches.pop(0), device))
    assert not matches


def _moved(matched: Matched, device: str) -> Matched:
    """Groups without their sums, on a device."""
    return Matched(
        matched.group_index.to(device),
        matched.roots.to(device),
        matched.sizes.to(device),
        None,
        None if matched.lengths is None else matched.lengths.to(device),
    )


def match_by_place(tokens: Tensor, schedule: Sequence[int], *_: object, **__: object) -> Matched:
    """Groups of neighbours, whatever they are like: what area pooling would merge."""
    count = tokens.shape[-2]
    keep = count - sum(schedule)
    group_index = torch.arange(count) * keep // count
    roots = torch.arange(keep) * count // keep
    sizes = group_index.bincount(minlength=keep).to(tokens)
    lead = tokens.shape[:-2]
    return Matched(*(t.expand(*lead, -1) for t in (group_index, roots, sizes)), None)


class BackboneContract:
    """Laws of a backbone with merging.

    A subclass defines ``build(**kwargs)`` (tiny; default arguments but width and
    depth), ``reference()`` (the plain model with its own parameter names; the tiny
    width; returns maps), ``load_reference(model, reference)``, ``plans``, how many ``tokens``
    a plan's numbers are of, how many ``stages`` it has, in how many of them tokens merge (the
    last ones), and how many entries (``plan_entries``) a plan has. An image of few kinds has
    ``side`` pixels per side and ``cell`` pixels per side of one kind; on it, merging like with
    like has less than ``like`` of the error of merging neighbours. All stages' maps are the built
    model's default.
    """

    stages: ClassVar[int] = 4
    plan_entries: ClassVar[int] = 4
    tokens: ClassVar[int] = 49
    masks_learn: ClassVar[bool] = False
    mask_name: ClassVar[str] = ".merge"
    atol: ClassVar[float] = 1e-5
    merging_stages: ClassVar[int] = 4
    cell: ClassVar[int] = 4
    side: ClassVar[int] = 448
    like: ClassVar[float] = 0.7
    plans: ClassVar[list] = ["light", "balanced", "fast"]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Laws that take a ``plan`` hold for each of them."""
        if "plan" in metafunc.fixturenames:
            metafunc.parametrize("plan", self.plans, ids=str)

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

    def with_weights_of(self, model: nn.Module, **kwargs: object) -> nn.Module:
        """Another model of the same weights, in eval mode; mask modules stay at their start."""
        other = self.build(**kwargs).eval()
        state, loaded = model.state_dict(), other.state_dict()
        shared = {k: v for k, v in state.items() if k in loaded and loaded[k].shape == v.shape}
        other.load_state_dict(shared, strict=False)
        return other

    @sizes
    def test_equals_the_reference_without_merging(self, batch, height, width):
        reference = settled(self.reference())
        reference.train(False)  # mmdet's returns None
        model = self.build(keep=None).eval()
        self.load_reference(model, reference, strict=True)
        x = self.image(batch, height, width)
        maps, expected = self.maps(model, x), self.maps(reference, x)
        assert len(maps) == len(expected)
        for a, b in zip(maps, expected, strict=True):
            assert_close(a, b, rtol=1e-5, atol=self.atol)

    @pytest.mark.parametrize("share", [1.0, True])  # all of them, as a share and as a number
    def test_keeping_all_tokens_is_no_merging(self, share):
        reference = settled(self.reference())
        reference.train(False)
        model = self.build(keep=share if share is not True else self.tokens).eval()
        self.load_reference(model, reference, strict=True)
        assert all(count == self.tokens for stage in model.plan for count in stage)
        x = self.image(1, 75, 117)
        for a, b in zip(self.maps(model, x), self.maps(reference, x), strict=True):
            assert_close(a, b, rtol=1e-5, atol=self.atol)

    def test_loads_the_reference_with_only_masks_missing(self):
        model = self.build(keep=0.4)
        result = self.load_reference(model, self.reference(), strict=False)
        assert not result.unexpected_keys
        assert bool(result.missing_keys) is self.masks_learn
        assert all(".merge." in key for key in result.missing_keys)

    @sizes
    def test_maps_have_the_declared_shapes(self, plan, batch, height, width):
        model = self.build(keep=plan).eval()
        maps = self.maps(model, self.image(batch, height, width))
        assert isinstance(maps, tuple)
        for m, channels, stride in zip(maps, model.out_channels, model.strides, strict=True):
            assert m.shape == (batch, channels, -(-height // stride), -(-width // stride))
            assert m.isfinite().all()

    def test_every_preset_changes_the_output(self):
        plain, seen = settled(self.build(keep=None)), []
        for plan in [None, *self.plans]:
            model = self.with_weights_of(plain, keep=plan)
            seen.append(self.maps(model, self.image(1, 96, 160))[-1])
        for i, a in enumerate(seen):
            for b in seen[i + 1 :]:
                assert (a - b).abs().max() > 1e-4

    def test_merging_alone_changes_nothing(self, plan):
        """With every branch after a merge silent, merge and unmerge cancel."""
        plain = settled(self.build(keep=None)).eval()
        for end in self.branch_ends(plain):
            for parameter in end.parameters():
                nn.init.zeros_(parameter)
        merged = settled(self.build(keep=plan)).eval()
        merged.load_state_dict(plain.state_dict(), strict=False)
        x = self.image(2, 75, 117)
        for a, b in zip(self.maps(merged, x), self.maps(plain, x), strict=True):
            assert_close(a, b, rtol=1e-5, atol=1e-5)

    def test_an_image_does_not_depend_on_its_batch(self):
        # In single precision the size of a batch decides how sums are rounded, and that in
        # turn which of two tokens that are equally alike is merged.
        model, x = settled(self.build(keep=0.4)).eval().double(), self.image(3, 75, 117).double()
        together = self.maps(model, x)
        for i in range(3):
            for a, b in zip(self.maps(model, x[i : i + 1]), together, strict=True):
                assert_close(a, b[i : i + 1], rtol=1e-6, atol=1e-6)

    def test_an_image_does_not_depend_on_what_stands_beside_it(self):
        model, x = settled(self.build(keep=0.4)).eval(), self.image(3, 75, 117)
        other = x.clone()
        other[0], other[2] = 100 * torch.randn(3, 75, 117), torch.nan
        for a, b in zip(self.maps(model, x), self.maps(model, other), strict=True):
            assert_close(a[1], b[1], rtol=0, atol=0)

    def test_recorded_merges_are_those_of_the_maps(self):
        """Each image's tokens are shared out among its merged tokens, and nothing else changes."""
        model, x = settled(self.build(keep=0.4)).eval().double(), self.image(2, 75, 117).double()
        with record_merges(model) as merges:
            recorded = self.maps(model, x)
        for a, b in zip(recorded, self.maps(model, x), strict=True):
            assert_close(a, b, rtol=1e-6, atol=1e-6)
        assert {name for name, _ in merges} == {
            name for name, _ in model.named_modules() if name.endswith(self.mask_name)
        }
        for _, merge in merges:
            images, count, _ = merge.merged.shape
            size = merge.grid
            masses = merge.share(torch.ones(images, *size, 1, dtype=torch.float64))
            assert masses.shape == (images, count, 1)
            expected = torch.full((images, 1), float(size[0] * size[1])).double()
            assert_close(masses.sum(1), expected, rtol=1e-6, atol=1e-6)
            groups = merge.groups()
            assert groups.shape == (images, *size)
            assert 0 <= groups.min() <= groups.max() < count

    def few_kinds(self) -> Tensor:
        """An image of four colours, a cell each, and a little noise."""
        count = self.side // self.cell
        kinds = torch.randn(4, 3)[torch.randint(0, 4, (1, count, count))].permute(0, 3, 1, 2)
        image = nn.functional.interpolate(kinds, scale_factor=self.cell)
        return image + 0.02 * torch.randn_like(image)

    def merge_by_place(self, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let a model merge neighbours, whatever they are like."""
        use_match(monkeypatch, match_by_place)

    def errors(self, model: nn.Module, plain: nn.Module, x: Tensor) -> Tensor:
        """Relative error of every map that merging can change."""
        maps = zip(self.maps(model, x), self.maps(plain, x), strict=True)
        errors = torch.stack([(a - b).norm() / b.norm() for a, b in maps])
        return errors[self.stages - self.merging_stages :]

    def test_like_merges_with_like(self, monkeypatch):
        """On tokens of few kinds, maps stay nearer to plain than if neighbours merged."""
        plain, x = settled(self.build(keep=None)).eval(), self.few_kinds()
        merged = self.with_weights_of(plain, keep=0.8)
        found = self.errors(merged, plain, x)
        self.merge_by_place(merged, monkeypatch)
        by_place = self.errors(merged, plain, x)
        assert (found < self.like * by_place).all()

    def test_more_tokens_mean_a_smaller_error(self):
        plain, x = settled(self.build(keep=None)).eval(), self.few_kinds()
        models = [self.with_weights_of(plain, keep=share) for share in (0.2, 0.4, 0.6, 0.8)]
        errors = torch.stack([self.errors(model, plain, x) for model in models])
        assert (errors.diff(dim=0) < 0).all()

    def test_every_parameter_gets_a_gradient(self):
        model = settled(self.build(keep=0.4, **self.deterministic())).train()
        sum(m.square().mean() for m in model(self.image(2, 96, 117))).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name

    def test_checkpointing_changes_nothing_but_memory(self):
        x = self.image(1, 64, 75)
        results = []
        state = settled(self.build(keep=0.4)).state_dict()
        for with_cp in (False, True):
            model = self.build(keep=0.4, with_cp=with_cp, **self.deterministic()).train()
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
        model = self.build(keep=0.4).eval()
        before = {name: set(vars(m)) for name, m in model.named_modules()}
        state = copy.deepcopy(model.state_dict())
        self.maps(model, self.image(1, 75, 117))
        assert {name: set(vars(m)) for name, m in model.named_modules()} == before
        for key, value in model.state_dict().items():
            assert_close(value, state[key], rtol=0, atol=0)

    def test_out_indices_choose_the_maps(self):
        whole = settled(self.build(keep=0.4)).eval()
        some = self.build(keep=0.4, out_indices=(1, 3)).eval()
        some.load_state_dict(whole.state_dict(), strict=False)
        x = self.image(1, 64, 75)
        expected = self.maps(whole, x)
        for a, b in zip(self.maps(some, x), (expected[1], expected[3]), strict=True):
            assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert some.out_channels == tuple(whole.out_channels[i] for i in (1, 3))
        assert some.strides == tuple(whole.strides[i] for i in (1, 3))

    def test_what_no_map_needs_is_not_built(self):
        """A parameter without a gradient stops distributed training."""
        whole = self.build(keep=0.4)
        model = self.build(keep=whole.plan, out_indices=(1, 2), **self.deterministic()).train()
        assert model.plan == whole.plan
        sum(m.square().mean() for m in model(self.image(2, 64, 75))).backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None]
        assert load_backbone(model, whole.state_dict()).fresh == []

    def test_frozen_stages_stay_as_they_are(self):
        for frozen in (-1, 0, 2):
            model = self.build(keep=0.4, frozen_stages=frozen)
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

    @pytest.mark.parametrize(
        "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]
    )
    def test_autocast_is_finite_and_near(self, plan, dtype):
        """As near as without merging, if the groups are the same."""
        plain, x = settled(self.build(keep=None)).eval(), self.image(1, 75, 117)
        model = self.with_weights_of(plain, keep=plan)
        with same_groups() as again:
            exact = [self.maps(m, x) for m in (model, plain)]
            again()
            with torch.autocast("cpu", dtype=dtype):
                half = [self.maps(m, x) for m in (model, plain)]
        with torch.autocast("cpu", dtype=dtype):
            assert all(m.isfinite().all() for m in self.maps(model, x))
        merged, without = (
            torch.stack([(a.float() - b).norm() / b.norm() for a, b in zip(*pair, strict=True)])
            for pair in zip(half, exact, strict=True)
        )
        assert (merged < 2 * without).all()

    def test_results_do_not_depend_on_the_thread_count(self):
        model = settled(self.build(keep=0.4)).eval()
        x, outputs, before = self.image(2, 96, 160), [], torch.get_num_threads()
        try:
            with same_groups() as again:
                for threads in (1, 2):
                    torch.set_num_threads(threads)
                    outputs.append(self.maps(model, x))
                    again()
        finally:
            torch.set_num_threads(before)
        for a, b in zip(*outputs, strict=True):
            assert_close(a, b, rtol=1e-5, atol=self.atol)

    def test_without_kernels_all_is_equal(self):
        """Maps and gradients, where the CPU's own paths are switched off."""
        state, outputs = settled(self.build(keep=0.4)).state_dict(), []
        x = self.image(2, 75, 117)
        with same_groups() as again:
            for on in (True, False):
                model = self.build(keep=0.4, **self.deterministic())
                model.load_state_dict(state)
                with use_kernels(on):
                    maps = self.maps(model.eval(), x)
                    outs = model(x)
                    sum(m.square().mean() for m in outs).backward()
                outputs.append([*maps, *outs, *(p.grad for p in model.parameters())])
                again()
        for a, b in zip(*outputs, strict=True):
            assert_close(a, b, rtol=1e-4, atol=self.atol)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            (dict(keep="quick"), "unknown preset keep='quick': choose from light, balanced"),
            (dict(keep=(None, 3)), "one entry for each of the {plan_entries} stages, got"),
            (dict(keep=True), "keep must be None, one of light, .*, got True"),
            (dict(keep=0), "0 is neither a number of tokens from 1 to {tokens} nor a share"),
            (dict(arch="huge"), "unknown arch 'huge': choose from"),
            (dict(out_indices=(9,)), "out_indices must name stages from 0 to {last}, got"),
            (dict(frozen_stages=9), "frozen_stages must lie in -1..{stages}, got 9"),
            (dict(init_cfg=dict(type="Xavier")), "init_cfg must be None, a file or an address, or"),
        ],
    )
    def test_bad_arguments_get_one_clear_line(self, kwargs, message):
        message = message.format(
            stages=self.stages,
            last=self.stages - 1,
            plan_entries=self.plan_entries,
            tokens=self.tokens,
        )
        with pytest.raises(ValueError, match=message) as error:
            self.build(**kwargs)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            (999, "999 is neither a number of tokens from 1 to {tokens} nor a share of them"),
            (0, "0 is neither"),
            (0.0, "0.0 is neither"),
            (1.5, "1.5 is neither"),
            ("fast", "give None, a number, or one for each of its . blocks, got 'fast'"),
            ((9,) * 99, "give None, a number, or one for each of its . blocks, got"),
        ],
    )
    def test_a_bad_plan_gets_one_clear_line(self, entry, message):
        last = f"keep of stage {self.plan_entries - 1}: {message.format(tokens=self.tokens)}"
        with pytest.raises(ValueError, match=last) as error:
            self.build(keep=(None,) * (self.plan_entries - 1) + (entry,))
        assert "\n" not in str(error.value)
