"""Merging on Swins of transformers, and on models that contain them; nothing is downloaded."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

import ltm_mm
from ltm_mm.adapters.apply import convert_stages
from ltm_mm.adapters.families import swin_stages
from ltm_mm.checkpoints import load_backbone
from ltm_mm.merging import Detail
from ltm_mm.models import LTMSwin
from tests.models.contract import settled

hf = pytest.importorskip("transformers", minversion="5")

SWIN = dict(embed_dim=16, depths=(2, 2, 4, 2), num_heads=(1, 2, 4, 8), drop_path_rate=0.0)
V1_V2 = ("", " v2")
STAGES = [f"stage{k}" for k in (1, 2, 3, 4)]
SMALL = dict(feature_size=32, hidden_dim=32, mask_feature_size=32, dim_feedforward=32)

# What from_pretrained reads lies elsewhere in memory, which convolutions round by.
LOADED = dict(rtol=1e-5, atol=1e-5)


def backbone_config(v2: bool = False) -> object:
    kind = hf.Swinv2Config if v2 else hf.SwinConfig
    return kind(**SWIN, window_size=7, image_size=224, out_features=STAGES)


def upernet(v2: bool = False) -> nn.Module:
    return hf.UperNetForSemanticSegmentation(
        hf.UperNetConfig(
            backbone_config=backbone_config(v2),
            hidden_size=16,
            auxiliary_channels=16,
            auxiliary_in_channels=64,
            num_labels=3,
        )
    )


def mask2former(v2: bool = False) -> nn.Module:
    return hf.Mask2FormerForUniversalSegmentation(
        hf.Mask2FormerConfig(
            backbone_config=backbone_config(v2),
            **SMALL,
            encoder_feedforward_dim=32,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            num_queries=5,
            num_labels=3,
        )
    )


def maskformer() -> nn.Module:
    decoder = hf.DetrConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=5,
    )
    return hf.MaskFormerForInstanceSegmentation(
        hf.MaskFormerConfig(
            fpn_feature_size=32,
            mask_feature_size=32,
            backbone_config=hf.SwinConfig(**SWIN, out_features=STAGES),
            decoder_config=decoder,
            num_labels=3,
        )
    )


def oneformer() -> nn.Module:
    return hf.OneFormerForUniversalSegmentation(
        hf.OneFormerConfig(
            backbone_config=backbone_config(),
            hidden_dim=32,
            mask_dim=32,
            conv_dim=32,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            dim_feedforward=32,
            encoder_feedforward_dim=32,
            num_queries=5,
            task_seq_len=8,
            query_dec_layers=1,
            is_training=False,
        )
    )


def grounding_dino() -> nn.Module:
    layers = dict(encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32)
    text = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    return hf.GroundingDinoForObjectDetection(
        hf.GroundingDinoConfig(
            backbone_config=hf.SwinConfig(**SWIN, out_features=STAGES[1:]),
            text_config=dict(model_type="bert", **text),
            **layers,
            d_model=32,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            num_queries=5,
        )
    )


CONTAINERS = {
    "oneformer": (oneformer, "masks_queries_logits", dict(task_inputs=torch.ones(1, 8))),
    "grounding dino": (
        grounding_dino,
        "pred_boxes",
        dict(input_ids=torch.tensor([[101, 7, 1012, 102]])),
    ),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_models_that_take_more_than_an_image(name):
    build, key, inputs = CONTAINERS[name]
    torch.manual_seed(0)
    model, x = settled(build()).eval(), torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        plain = model(pixel_values=x, **inputs)[key]
        merged = ltm_mm.apply(model, keep=0.4)(pixel_values=x, **inputs)[key]
        again = ltm_mm.remove(model)(pixel_values=x, **inputs)[key]
    assert merged.shape == plain.shape
    assert (merged - plain).abs().max() > 1e-6
    assert_close(again, plain, rtol=0, atol=0)


MODELS = {
    "backbone": lambda: hf.SwinBackbone(backbone_config()),
    "backbone v2": lambda: hf.Swinv2Backbone(backbone_config(True)),
    "donut": lambda: hf.DonutSwinModel(hf.DonutSwinConfig(**SWIN, image_size=[224, 280])),
    "classifier": lambda: hf.SwinForImageClassification(hf.SwinConfig(**SWIN)),
    "classifier v2": lambda: hf.Swinv2ForImageClassification(hf.Swinv2Config(**SWIN)),
    "upernet": upernet,
    "mask2former": mask2former,
    "maskformer": maskformer,
    "model": lambda: hf.SwinModel(hf.SwinConfig(**SWIN)),
    "model v2": lambda: hf.Swinv2Model(hf.Swinv2Config(**SWIN, image_size=224)),
    "upernet v2": lambda: upernet(True),
    "mask2former v2": lambda: mask2former(True),
}
models = pytest.mark.parametrize("name", MODELS)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return settled(MODELS[name]()).eval()


def outputs(model: nn.Module, size: tuple[int, int] = (224, 224), grad: bool = False) -> list:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.set_grad_enabled(grad):
        out = model(pixel_values=x)
    for key in ("feature_maps", "logits", "masks_queries_logits", "last_hidden_state"):
        if getattr(out, key, None) is not None:
            value = getattr(out, key)
            return list(value) if isinstance(value, tuple) else [value]
    raise AssertionError(type(out))


def sizes_of(name: str) -> list[tuple[int, int]]:
    if name == "donut":
        return [(224, 280)]
    one = name.startswith(("classifier", "model"))  # their windows fit themselves to the image
    return [(224, 224)] if one else [(224, 224), (100, 132)]


@models
@pytest.mark.parametrize("grad", [False, True], ids=["fast path", "gradients"])
def test_on_our_code_with_all_tokens_nothing_changes(name, grad):
    model = build(name)
    for size in sizes_of(name):
        expected = outputs(model, size)
        convert_stages(model, None, everywhere=True)
        assert_close(outputs(model, size, grad), expected, rtol=2e-5, atol=2e-5)
        ltm_mm.remove(model)


USED = [f"{kind}{v2}" for kind in ("model", "classifier", "upernet", "mask2former") for v2 in V1_V2]
used = pytest.mark.parametrize("name", USED)


@used
def test_before_or_after_a_pass_is_the_same(name, tmp_path):
    """Applied to a fresh model, to one that has run, again, to a copy, and to what was saved."""
    size = sizes_of(name)[-1]
    expected = outputs(ltm_mm.apply(build(name), keep=0.4), size)
    model = build(name)
    for other in sizes_of(name):
        outputs(model, other)
    for _ in range(2):
        assert_close(outputs(ltm_mm.apply(model, keep=0.4), size), expected, rtol=0, atol=0)
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path).eval()
        assert_close(outputs(ltm_mm.apply(again, keep=0.4), size), expected, **LOADED)
        assert_close(outputs(copy.deepcopy(model), size), expected, rtol=0, atol=0)
        ltm_mm.remove(model)


def all_outputs(model: nn.Module, size: tuple[int, int], **options: bool) -> dict[str, list]:
    """Everything that a pass gives, by name, tuples in full."""
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model(pixel_values=x, **options)
    return {k: list(v) if isinstance(v, tuple) else [v] for k, v in out.items() if v is not None}


@used
def test_hidden_states(name):
    model, size = build(name), sizes_of(name)[-1]
    expected = all_outputs(model, size, output_hidden_states=True)
    assert [key for key in expected if "hidden_states" in key]
    convert_stages(model, None, everywhere=True)
    found = all_outputs(model, size, output_hidden_states=True)
    assert_close(found, expected, rtol=2e-5, atol=2e-5)
    ltm_mm.apply(ltm_mm.remove(model), keep=0.4)
    merged = all_outputs(model, size, output_hidden_states=True)
    assert shapes(merged) == shapes(expected)
    asked = all_outputs(model, size)
    assert_close(asked, {key: merged[key] for key in asked}, rtol=0, atol=0)


def shapes(found: dict[str, list]) -> dict[str, list]:
    return {k: [tuple(v.shape) for v in values if v is not None] for k, values in found.items()}


@used
@pytest.mark.parametrize("way", ["argument", "config"])
def test_attention_weights_are_had_or_refused(name, way):
    """Mask2Former's are those of its decoder, which is as it was."""
    model, size, options = build(name), sizes_of(name)[-1], dict(output_attentions=True)
    model.set_attn_implementation("eager")
    if way == "config":
        options = {}
        model.config.output_attentions = True
    expected = all_outputs(model, size, **options)
    assert expected["attentions"]
    ltm_mm.apply(model, keep=0.4)
    if "mask2former" in name:
        assert shapes(all_outputs(model, size, **options)) == shapes(expected)
    else:
        with pytest.raises(ValueError, match="has no attention weights of tokens") as error:
            all_outputs(model, size, **options)
        assert "\n" not in str(error.value)
    assert_close(all_outputs(ltm_mm.remove(model), size, **options), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["classifier", "classifier v2", "upernet", "mask2former"])
def test_what_was_learned_goes_beside_the_librarys_file(name, tmp_path):
    """``from_pretrained`` builds the plain model, which has no place for it."""
    model = ltm_mm.apply(build(name), keep=0.4)
    with_details(model)
    learned_entries = {k: v for k, v in model.state_dict().items() if ".merge." in k}
    for value in learned_entries.values():
        value.normal_(0, 0.1)
    size = sizes_of(name)[-1]
    expected = outputs(model, size)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    ltm_mm.apply(again, keep=0.4)
    assert (outputs(again, size)[-1] - expected[-1]).abs().max() > 1e-6
    left = again.load_state_dict(learned_entries, strict=False)
    assert not left.unexpected_keys
    assert not [key for key in left.missing_keys if ".merge." in key]
    assert_close(outputs(again, size), expected, **LOADED)


def with_details(model: nn.Module) -> None:
    for blocks in swin_stages(model):
        for block, norms in blocks:
            block.merge.detail = Detail(norms[0].weight.numel()).eval()


class Drawn(torch.utils.data.Dataset):
    """Four images of two classes."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        x = torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(index))
        return dict(pixel_values=x, labels=torch.tensor(index % 2))


@pytest.mark.parametrize("name", ["classifier", "classifier v2"])
def test_the_trainer_trains_saves_and_resumes(name, tmp_path):
    """What learns for merging learns, too, and is in the Trainer's own checkpoints."""
    pytest.importorskip("accelerate")
    options = dict(per_device_train_batch_size=1, save_steps=2, report_to=[], use_cpu=True)
    options |= dict(learning_rate=1e-2, disable_tqdm=True, dataloader_pin_memory=False)

    def trained(resume: str | None = None) -> tuple[nn.Module, nn.Module]:
        model = ltm_mm.apply(build(name), keep=0.4)
        with_details(model)
        start = copy.deepcopy(model)
        arguments = hf.TrainingArguments(str(tmp_path), max_steps=4, **options)
        trainer = hf.Trainer(model, arguments, train_dataset=Drawn())
        trainer.train(resume_from_checkpoint=resume)
        return model, start

    model, start = trained()
    moved = {k for k, v in start.named_parameters() if not torch.equal(v, model.get_parameter(k))}
    learning = {key for key, _ in model.named_parameters() if ".merge." in key}
    assert learning <= moved
    assert learning
    if name == "classifier":  # whose checkpoints the Trainer of 5.24 saves by other names
        return
    again, _ = trained(str(tmp_path / "checkpoint-2"))
    assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=1e-5, atol=1e-6)


@models
def test_merged_and_taken_off_again(name, tmp_path):
    model = build(name)
    size = sizes_of(name)[-1]
    before, state = outputs(model, size), copy.deepcopy(model.state_dict())
    types = list(map(type, model.modules()))
    ltm_mm.apply(model, keep=0.4)
    assert list(model.state_dict()) == list(state)
    merged = outputs(model, size)
    assert [m.shape for m in merged] == [b.shape for b in before]
    assert (merged[-1] - before[-1]).abs().max() > 1e-5
    assert_close(outputs(copy.deepcopy(model), size), merged, rtol=0, atol=0)
    ltm_mm.remove(model)
    assert list(map(type, model.modules())) == types
    assert_close(outputs(model, size), before, rtol=0, atol=0)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert_close(outputs(again, size), before, **LOADED)
    ltm_mm.apply(again, keep=0.4)
    assert_close(outputs(again, size), merged, **LOADED)


def test_a_training_step_of_upernet_and_mask2former():
    for name, labels in (
        ("upernet", dict(labels=torch.randint(3, (2, 96, 128)))),
        (
            "mask2former",
            dict(
                mask_labels=[torch.randint(2, (2, 96, 128)).float()] * 2,
                class_labels=[torch.tensor([0, 2])] * 2,
            ),
        ),
    ):
        model = ltm_mm.apply(build(name), keep=0.4).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        weight = next(p for n, p in model.named_parameters() if "blocks.0.attention.q_proj" in n)
        before = weight.detach().clone()
        model(pixel_values=torch.randn(2, 3, 96, 128), **labels).loss.backward()
        optimizer.step()
        assert (weight - before).abs().max() > 0


def passes(model: nn.Module) -> tuple[list[int], dict[str, torch.Tensor]]:
    """Sizes of what a forward pass keeps, and the gradients."""
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel()) or t, lambda t: t
    ):
        torch.manual_seed(3)
        out = outputs(model, grad=True)
    model.zero_grad()
    sum(o.square().mean() for o in out).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return sizes, grads


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("name", ["backbone", "backbone v2", *USED])
def test_checkpointing_by_the_librarys_own_switch(name, order):
    model = build(name).eval()
    if not model.supports_gradient_checkpointing:
        pytest.skip("the library has none for this model")
    if order == "before":
        model.gradient_checkpointing_enable()
    ltm_mm.apply(model, keep=0.4).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.BatchNorm2d):
            module.eval()
    saved, grads = [], []
    for on in (True, False):
        if on:
            model.gradient_checkpointing_enable()
        else:
            model.gradient_checkpointing_disable()
        sizes, grad = passes(model)
        saved.append(sum(sizes))
        grads.append(grad)
    assert saved[0] < saved[1] * 0.95
    assert_close(*grads, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["backbone", "backbone v2", "donut"])
def test_hooks_fire_as_they_did(name):
    model, calls, seen = build(name), [], []
    for path, module in model.named_modules():
        module.register_forward_hook(lambda *_, path=path: calls.append(path))
    for merging in (False, True):
        if merging:
            ltm_mm.apply(model, keep=0.4)
        calls.clear()
        outputs(model, sizes_of(name)[0])
        seen.append(sorted(calls))
    # Swin's own position bias is a module that gives the table of all tokens.
    seen[0] = [path for path in seen[0] if not path.endswith("relative_position_bias")]
    assert seen[1] == seen[0]


@pytest.mark.parametrize("name", ["backbone", "upernet", "mask2former", "maskformer"])
def test_merged_as_ltm_swin_with_the_same_weights(name, tmp_path):
    """As the model holds its weights, and as it writes them."""
    model = build(name)
    model.save_pretrained(tmp_path)
    for weights in (model.state_dict(), load_file(tmp_path / "model.safetensors")):
        mine = LTMSwin(embed_dims=16, depths=SWIN["depths"], num_heads=SWIN["num_heads"], keep=0.4)
        report = load_backbone(mine, weights)
        assert not report.fresh, report
    own = next(m for m in model.modules() if type(m).__name__.endswith("SwinBackbone"))
    ltm_mm.apply(model, keep=0.4)
    mine.eval()
    for size in ((224, 224), (100, 132)):
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            assert_close(list(mine(x)), list(own(x).feature_maps), rtol=1e-5, atol=1e-5)


def test_swin_v2_weights_are_named():
    mine = LTMSwin(embed_dims=16, depths=SWIN["depths"], num_heads=SWIN["num_heads"])
    with pytest.raises(ValueError, match="the checkpoint holds Swin V2 weights"):
        load_backbone(mine, build("backbone v2").state_dict())


@models
def test_fidelity_of_such_a_model(name):
    model = build(name)
    images = [torch.randn(1, 3, *sizes_of(name)[0])]
    measured = ltm_mm.fidelity(model, images, [0.7, 0.3], baselines=(), rounds=0, progress=False)
    errors = {row.name: row.errors for row in measured.rows}
    assert errors["plain, our blocks"] == pytest.approx([0] * 4, abs=1e-5)
    assert all(0 < a < b < 1 for a, b in zip(errors["0.7"], errors["0.3"], strict=True))
    if not name.startswith(("backbone", "model", "donut")):  # which predict nothing
        assert all(row.agreement for row in measured.rows)
