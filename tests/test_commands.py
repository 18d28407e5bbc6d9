"""Every command of the README, the docs and the configs' headers runs, at tiny scale.

They run as they are written, one after the other in a folder that looks like the repository with
data in it. Changed are only what would take hours or what a test machine lacks: sizes, numbers of
images, steps, proposals and rounds; pretrained weights (no internet); ranks (one). A checkpoint
that a command names and no earlier one made is the config's model with fresh weights.

Not run: `make`, `pip` and `git` lines, which change the machine (the commands of `make demo` are
run); `tools/check_configs.py`, which builds all models at full width for minutes; the ImageNet
recipes, whose data are not there (`tests/engine/test_families.py` runs real steps of them); what
is for a GPU.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from glob import glob
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from ltm_mm.checks.options import flatten
from ltm_mm.datasets import draw_image, ensure_shapes
from ltm_mm.engine import load_config
from tests.test_readme import ROOT, blocks, commands, words_of

pytestmark = pytest.mark.slow
SMALL = (96, 96)
CONFIG = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"  # where a page says CONFIG
NOT_RUN = ("check_configs", "_imagenet.py", "cuda", "openvino")
# Options that make a measuring tool quick; of an option given twice the last one counts.
QUICK = {
    "benchmark.py": ["--size", "64", "96", "--rounds", "1"],
    "fidelity.py": ["--num-photos", "1", "--rounds", "1", "--size", "96", "96"],
    "learn.py": ["--steps", "6", "--crop", "224", "--lr", "1e-7", "--rounds", "0"],
    "plan.py": ["--size", "224", "224", "--rounds", "1"],
    "flops.py": ["--rounds", "1"],
    "gpu_benchmark.py": ["--dry-run", "--parts", "environment"],
    "real_weights.py": ["--every", "40", "--rounds", "1", "--size-of", "64", "96", "--ltm", "fast"],
}
REPLAYED = ("train.py", "test.py", "dist_train.sh", "dist_test.sh")


def demo_commands() -> list[str]:
    """What `make demo` runs after the set-up."""
    done = subprocess.run(
        ["make", "-n", "--no-print-directory", "demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return re.findall(r"python (tools/.*)$", done.stdout, flags=re.M)


def to_run() -> list[str]:
    demo = [f"python {line}" for line in demo_commands()]
    skipped = ("make", "pip", "git", "cd")
    written = [c for c in commands() if words_of(c)[0] not in skipped]
    return [*demo, *(c for c in written if not any(part in c for part in NOT_RUN))]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the repository's files, small data and a photo."""
    folder = tmp_path_factory.mktemp("sandbox")
    for name in ("configs", "tools", "docs"):
        shutil.copytree(ROOT / name, folder / name)
    ensure_shapes(folder / "data" / "shapes", {"train": 8, "val": 60})
    real = Path(os.environ.get("LTM_SHARED_DATA", ROOT.parent / "shared" / "data")).resolve()
    links = {
        "data/coco": "coco_mini",
        "data/ade/ADEChallengeData2016": "ade20k_mini",
        "path/to/fruits_nuts": "fruits_nuts",
    }
    for place, name in links.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        if (real / name).is_dir():
            (folder / place).symlink_to(real / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if Path("path/to/fruits_nuts").exists():
            (code,) = (
                c for c in blocks(ROOT / "docs" / "own-data.md", "python") if "annToMask" in c
            )
            exec(code, {"__name__": "page"})  # data/fruits_nuts_labels
    Image.fromarray(draw_image("val", 50)[0]).save(folder / "photo.jpg")
    (folder / "photos").mkdir()
    for k in range(2):
        Image.fromarray(draw_image("val", k)[0]).save(folder / "photos" / f"{k}.jpg")
    return folder


def run(words: list[str], folder: Path, variables: Mapping[str, str]) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LTM_DEBUG")}
    env |= {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **variables}
    words = [sys.executable if word == "python" else word for word in words]
    done = subprocess.run(
        words, cwd=folder, env=env, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("command", to_run(), ids=lambda command: command[:90])
def test_command_runs(command: str, sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sandbox)
    variables = dict(w.split("=", 1) for w in shlex.split(command) if re.match(r"[A-Z_]+=", w))
    words = words_of(re.sub(r"\$\(cat (\S+)\)", lambda m: Path(m[1]).read_text(), command))
    words = [CONFIG if word == "CONFIG" else word for word in words]
    for key, value in {"DATA_ROOT": "path/to/fruits_nuts/", **variables}.items():
        monkeypatch.setenv(key, value)
        variables[key] = value
    words = [name for w in words for name in (sorted(glob(w)) if "*" in w else [w])]
    tool = Path(words[1]).name
    config = next((w for w in words if w.startswith("configs/") or "::" in w), None)
    if config:
        _need_data(config)
        _make_checkpoints(words, config)
    if tool in ("real_weights.py", "how_merging_works.py"):
        variables |= _shared_folders()
    if tool in REPLAYED:
        assert config is not None
        words = reduced_command(words, config)
    if tool == "export.py" and "rcnn" in config:  # untrained detections are ties
        words = [word for word in words if word != "--check"]
    words = [*words, *QUICK.get(tool, [])]
    if "--learn" in words:
        words = [*words, "--learn", "4"]
    said = run(words, sandbox, variables)
    named = {"--show-dir", "--out-dir", "--out", "--work-dir"} & set(words)
    for option in named:
        assert Path(words[words.index(option) + 1]).exists(), said
    if tool == "report.py":
        assert Path(re.search(r"report: (\S+)", said)[1]).stat().st_size > 10_000


ANY_CONFIG = blocks(ROOT / "docs" / "any-config.md", "python")


@pytest.mark.parametrize("code", ANY_CONFIG, ids=lambda code: code.split("/")[1])
def test_backbone_in_any_config(code: str, sandbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The diffs of docs/any-config.md train for a step and are tested."""
    monkeypatch.chdir(sandbox)
    name = "mine_upernet.py" if "mmseg::" in code else "mine_mask-rcnn.py"
    _need_data(name)
    config = f"configs/{name}"
    code += "\nmodel['backbone']['init_cfg'] = None\n"
    if "dino" in code:  # which has more queries than small images have places
        code += "model['num_queries'] = 20\n"
        code += "data = dict(pipeline=_base_.val_dataloader.dataset.pipeline)\n"
        code += "train_dataloader = dict(dataset=data)\n"
    Path(config).write_text(code)
    work = ["--work-dir", f"work_dirs/{code.split('/')[1].split('_')[0]}"]
    batch_norm = [
        f"{key.rpartition('.')[0]}.type=BN"
        for key, value in flatten(load_config(config))
        if key.startswith("model.") and value == "SyncBN"
    ]
    for tool, words in (("train", []), ("test", [f"{work[1]}/last.pth"])):
        if tool == "test":
            shutil.copy((Path(work[1]) / "last_checkpoint").read_text(), words[0])
        line = reduced_command(["python", f"tools/{tool}.py", config, *words, *work], config)
        run([*line, *batch_norm], sandbox, {})


def _need_data(config: str) -> None:
    """Skip where the real data that a config reads are absent."""
    needed = {
        "upernet_fruits_nuts": "data/fruits_nuts_labels",
        "upernet_finetune": "data/fruits_nuts_labels",
        "finetune": "path/to/fruits_nuts",
        "fruits_nuts": "path/to/fruits_nuts",
        "shapes": "data/shapes",
        "classifier": "data/shapes",
        "ssdlite": "data/coco",
        "upernet": "data/ade/ADEChallengeData2016",
        "maskrcnn": "data/coco",
        "fasterrcnn": "data/coco",
        "mask-rcnn": "data/coco",
    }
    place = next(place for part, place in needed.items() if part in config)
    if not Path(place).exists():
        pytest.skip(f"no real data for {config}; set LTM_SHARED_DATA to a folder that has them")


def _shared_folders() -> dict[str, str]:
    """Where networks with trained weights and photos are; skip where they are not."""
    folders = {}
    for name, part in (("LTM_SHARED_REAL", "real"), ("LTM_SHARED_DATA", "data")):
        place = Path(os.environ.get(name, ROOT.parent / "shared" / part)).resolve()
        if not place.is_dir():
            pytest.skip(f"no {place}; set {name} to a folder with trained networks or photos")
        folders[name] = str(place)
    return folders


def _make_checkpoints(words: list[str], config: str) -> None:
    """Fresh weights of a config's model for every checkpoint that is named and missing."""
    for name in (w for w in words if w.endswith(".pth") and not Path(w).exists()):
        cfg = load_config(config)
        backbone = cfg.model.backbone
        backbone.init_cfg = None
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": model.state_dict()}, name)


def reduced_command(words: list[str], config: str) -> list[str]:
    """A training or test command with options that make it tiny, its own ones kept."""
    words = list(words)
    if words[0] == "bash":
        place = 4 if words[1].endswith("dist_test.sh") else 3
        words[place] = "1"  # rank: a test machine has no eight GPUs
    if "--cfg-options" not in words:
        words.append("--cfg-options")
    words = [word for word in words if ".indices=" not in word]  # there are fewer images here
    at = words.index("--cfg-options") + 1
    own = {word.split("=")[0] for word in words[at:] if "=" in word}
    small = [f"{k}={v}" for k, v in tiny(load_config(config)) if k not in own]
    return [*words[:at], *small, *words[at:]]


def tiny(cfg: Config) -> Iterator[tuple[str, object]]:
    """Options that leave one step on small images, few proposals and no download."""
    yield "model.backbone.init_cfg", None
    if cfg.get("load_from"):
        yield "load_from", None
    yield "default_hooks.logger.interval", 1
    yield "default_hooks.checkpoint.interval", 1
    unit = "max_epochs" if cfg.train_cfg.get("max_epochs") else "max_iters"
    yield f"train_cfg.{unit}", 1
    yield "train_cfg.val_interval", 1
    for part in ("train", "val", "test"):
        yield f"{part}_dataloader.num_workers", 0
        yield f"{part}_dataloader.persistent_workers", False
        yield f"{part}_dataloader.batch_size", 2 if part == "train" else 1
        path, node = f"{part}_dataloader.dataset", cfg[f"{part}_dataloader"].dataset
        while "dataset" in node:
            yield f"{path}.times", 1
            path, node = f"{path}.dataset", node.dataset
        yield f"{path}.indices", 2
        for k, step in enumerate(node.pipeline):
            if step["type"] in ("Resize", "RandomResize"):
                yield f"{path}.pipeline.{k}.scale", f"({SMALL[0]},{SMALL[1]})"
    if "rpn_head" in cfg.model:
        yield "model.train_cfg.rpn_proposal.max_per_img", 10
        yield "model.train_cfg.rcnn.sampler.num", 8
        yield "model.test_cfg.rpn.max_per_img", 10
    for head in ("decode_head", "auxiliary_head"):
        if ((cfg.model.get(head) or {}).get("norm_cfg") or {}).get("type") == "SyncBN":
            yield f"model.{head}.norm_cfg.type", "BN"  # SyncBN needs a GPU
