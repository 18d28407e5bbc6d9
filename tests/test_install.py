"""Installing: what an archive brings, and what works without any package of OpenMMLab."""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ltm_mm.datasets import ensure_shapes
from ltm_mm.models import LTMMobileViT

ROOT = Path(__file__).parent.parent
MM = ("mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain")


def run(*words: object, cwd: Path | None = None, ok: bool = True) -> str:
    """A program's output; it finds neither this checkout nor a launcher's settings."""
    hidden = ("PYTHONPATH", "RANK", "WORLD_SIZE")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        [*map(str, words)],
        env=env | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == ok, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout if ok else done.stderr


# timm's users: everything that the package promises them, and what is said about the rest.
WITHOUT_MM = """
import torch, timm, ltm_mm, ltm_mm.timm_models
ltm_mm.export, ltm_mm.fidelity, ltm_mm.learn
from ltm_mm.merging import record_merges
names = ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "efficientvit_b0", "mobilevit_xxs"]
for name in names:
    model, x = timm.create_model(name).eval(), torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        plain = model(x)
        with record_merges(ltm_mm.apply(model, keep="fast")) as merges:
            model(x)
        print(name, len(merges) > 0, torch.equal(ltm_mm.remove(model)(x), plain))
model = timm.create_model("ltm_vit_tiny", keep="fast").eval()
with torch.no_grad(), record_merges(model) as merges:
    print("ltm_vit_tiny", model(x).shape, len(merges) > 0)
try:
    import ltm_mm.engine.run
except ModuleNotFoundError as error:
    print(error.name.partition('.')[0])
"""
EXPECTED = [
    "swin_tiny_patch4_window7_224 True True",
    "vit_tiny_patch16_224 True True",
    "efficientvit_b0 True True",
    "mobilevit_xxs True True",
    "ltm_vit_tiny torch.Size([1, 1000]) True",
    "mmengine",
]


def test_timm_models_need_no_openmmlab() -> None:
    block = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules.update(dict.fromkeys({MM}))"
    )
    assert run(sys.executable, "-c", block + WITHOUT_MM).splitlines() == EXPECTED


def test_commands_run_the_tools_of_their_names() -> None:
    from ltm_mm import cli

    scripts = re.findall(r'^ltm-(\w+) = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert {name for name, _ in scripts} == {*TOOLS}
    for name, place in scripts:
        assert place == f"ltm_mm.cli:{name}"
        assert getattr(cli, name).args == (name,)
        assert (cli.TOOLS / f"{name}.py").is_file()


def test_command_says_what_is_missing() -> None:
    block = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules['mmengine'] = None\n"
    block += "sys.argv.append('config.py')\n"
    said = run(sys.executable, "-c", block + "from ltm_mm.cli import train; train()", ok=False)
    assert said == "error: mmengine is not installed: pip install 'ltm_mm[mm]'\n"


def test_help_needs_nothing_heavy() -> None:
    said = run(sys.executable, "-c", HELP.format(tools=str(ROOT / "tools")))
    assert said.count("show this help message") == len(TOOLS)
    assert said.splitlines()[-1] == "[]"


TOOLS = (
    "train",
    "test",
    "predict",
    "learn",
    "benchmark",
    "fidelity",
    "plan",
    "visualize",
    "report",
    "export",
)
HELP = f"""
import contextlib, runpy, sys
for name in {TOOLS}:
    sys.argv[:] = [name, "--help"]
    with contextlib.suppress(SystemExit):
        runpy.run_path(f"{{tools}}/{{{{name}}}}.py", run_name="__main__")
heavy = "torch numpy timm mmengine mmcv mmdet mmseg matplotlib".split()
print([name for name in heavy if name in sys.modules])
"""
WITHOUT = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({MM}))
for name, *arguments in {{calls}}:
    sys.argv[:] = [name, *arguments]
    runpy.run_path(f"{{tools}}/{{{{name}}}}.py", run_name="__main__")
"""


def run_without(calls: list[list[str]], folder: Path) -> str:
    small = ["--size", "64", "64", "--out", str(folder / "out.pt2")]
    calls = [[name, "ltm-mobilevit-xxs", *arguments, *small] for name, *arguments in calls]
    return run(sys.executable, "-c", WITHOUT.format(calls=calls, tools=str(ROOT / "tools")))


@pytest.mark.slow  # test_timm_models_need_no_openmmlab imports the package without it, too
def test_backbones_of_a_name_need_no_openmmlab(tmp_path: Path) -> None:
    Image.new("RGB", (80, 64), "red").save(tmp_path / "a.png")
    torch.save(LTMMobileViT("xxs").state_dict(), tmp_path / "a.pth")
    files, once = [str(tmp_path / "a.pth"), str(tmp_path / "a.png")], ["--rounds", "1"]
    plans = [["--ltm", "fast", "--baselines", "pooling"], ["--ltm", "none", "fast"]]
    said = run_without(
        [
            ["plan", "--target-time", "1", *once],
            ["fidelity", *files, *once, *plans[0]],
            ["benchmark", *once, *plans[1]],
        ],
        tmp_path,
    )
    for words in ("images of 64 x 64", "error of the maps", "keep=fast"):
        assert words in said


@pytest.mark.slow  # tracing takes a minute
def test_export_of_a_named_backbone_needs_no_openmmlab(tmp_path: Path) -> None:
    assert "out.pt2: " in run_without([["export", "--format", "torch"]], tmp_path)


def test_model_index_lists_every_config_once() -> None:
    index = yaml.safe_load((ROOT / "model-index.yml").read_text())
    families = [yaml.safe_load((ROOT / path).read_text()) for path in index["Import"]]
    models = [model for family in families for model in family["Models"]]
    shipped = sorted(f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py"))
    assert sorted(model["Config"] for model in models) == shipped
    for family in families:
        (collection,) = family["Collections"]
        assert {model["In Collection"] for model in family["Models"]} == {collection["Name"]}
        assert (ROOT / collection["Code"]).is_file()
        assert (ROOT / collection["README"]).is_file()
    for model in models:
        assert model["Name"] == Path(model["Config"]).stem
        assert not any("Metrics" in result for result in model["Results"]), "nothing was measured"


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, and the wheel that is built from it."""
    pytest.importorskip("build", reason="pip install build")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    return {"sdist": next(folder.glob("*.tar.gz")), "wheel": next(folder.glob("*.whl"))}


@pytest.mark.slow
def test_archives_hold_all_that_is_in_the_repository(archives: dict[str, Path]) -> None:
    tracked = {name for name in run("git", "ls-files", cwd=ROOT).splitlines() if name[0] != "."}
    with tarfile.open(archives["sdist"]) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    assert {name for name in tracked if ".mim/" not in name} <= held
    with zipfile.ZipFile(archives["wheel"]) as wheel:
        packed = set(wheel.namelist())
    package = {name for name in tracked if name.startswith("ltm_mm/") and ".mim/" not in name}
    brought = {f"ltm_mm/.mim/{n}" for n in tracked if re.match("configs/|tools/|model-index", n)}
    about = {name for name in packed if ".dist-info/" in name}
    assert packed - about == package | brought


def make_venv(folder: Path, with_mm: bool) -> Path:
    """The Python of a fresh environment that sees what is installed here, ltm_mm left out.

    Its packages are links, so that torch is not downloaded for every test.
    """
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    mm = re.compile(r"mm(engine|cv|det|seg|pretrain)\b|onedl_mm")
    layer = folder / "layer"
    layer.mkdir()
    for parent in (Path(p) for p in sys.path if p.endswith("site-packages")):
        for entry in parent.iterdir():
            hidden = "ltm_mm" in entry.name or (not with_mm and mm.match(entry.name))
            if not hidden and entry.suffix != ".pth" and not (layer / entry.name).exists():
                (layer / entry.name).symlink_to(entry)
    (site / "layer.pth").write_text(f"{layer}\n")
    return python


def install(python: Path, what: object) -> None:
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", *what)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_installed_it_trains_and_measures_from_another_folder(
    kind: str, archives: dict[str, Path], tmp_path: Path
) -> None:
    python = make_venv(tmp_path, with_mm=True)
    install(python, ["-e", ROOT] if kind == "editable" else [archives[kind]])
    away, programs = tmp_path / "away", python.parent
    away.mkdir()
    place = Path(run(python, "-c", "import ltm_mm; print(ltm_mm.__file__)", cwd=away).strip())
    assert place.is_relative_to(ROOT if kind == "editable" else tmp_path / "venv")

    ensure_shapes(away / "data" / "shapes", {"train": 8, "val": 1})
    options = ["train_cfg.max_epochs=1", "default_hooks.logger.interval=1"]
    config = "ltm_mm::ltm_swin_maskrcnn_shapes.py"
    run(programs / "ltm-train", config, "--cfg-options", *options, cwd=away)
    (log,) = away.glob("work_dirs/ltm_swin_maskrcnn_shapes/*/*.log")
    assert "Epoch(train) [1][1/1]" in log.read_text()
    measured = run(
        *(programs / "ltm-benchmark", "ltm-swin-t", "--against", "timm", "--ltm", "fast"),
        *("--size", 64, 96, "--rounds", 1, "--threads", 1),
        cwd=away,
    )
    assert "| keep=fast" in measured
    # A program that imports mmdet first and never names ltm_mm.
    tools = Path(find_spec("mmdet").origin).parent / ".mim" / "tools"
    shipped = place.parent / ".mim" / "configs" / "ltm_swin_maskrcnn_shapes.py"
    (browse,) = tools.glob("analysis_tools/browse_dataset.py")
    run(python, browse, shipped, "--not-show", "--output-dir", "pictures", cwd=away)
    assert len(list((away / "pictures").iterdir())) == 8


@pytest.mark.slow
def test_wheel_serves_timm_in_an_environment_without_openmmlab(
    archives: dict[str, Path], tmp_path: Path
) -> None:
    python = make_venv(tmp_path, with_mm=False)
    install(python, [archives["wheel"]])
    check = f"from importlib.util import find_spec; print([find_spec(n) for n in {MM}])\n"
    printed = run(python, "-c", "import ltm_mm\n" + check + WITHOUT_MM, cwd=tmp_path).splitlines()
    assert printed == ["[None, None, None, None, None]", *EXPECTED]
    said = run(python.parent / "ltm-train", "config.py", cwd=tmp_path, ok=False)
    assert said == "error: mmengine is not installed: pip install 'ltm_mm[mm]'\n"


@pytest.mark.slow
def test_the_start_of_python_is_changed_only_when_asked_for(
    archives: dict[str, Path], tmp_path: Path
) -> None:
    python = make_venv(tmp_path, with_mm=False)
    install(python, [archives["wheel"]])
    hooks = "import sys; print([f for f in sys.meta_path if 'LTM' in getattr(f, '__name__', '')])"
    assert run(python, "-c", hooks) == "[]\n"
    run(python, "-m", "ltm_mm.compat", "install")
    assert "LTMFallback" in run(python, "-c", hooks)
    run(sys.executable, "-m", "pip", "--python", python, "uninstall", "-y", "ltm_mm")
    package = "import sys; sys.modules['mmcv'] = sys; sys.__path__ = []"
    search = "from importlib.util import find_spec; print(find_spec('mmcv._ext'))"
    assert run(python, "-c", f"{package}; {search}") == "None\n"


@pytest.mark.slow
def test_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="make docs installs it")
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom sphinx.cmd.build import main\n"
    arguments = ["-W", "--keep-going", "-q", str(ROOT / "docs"), str(tmp_path)]
    run(sys.executable, "-c", f"{code}sys.exit(main({arguments}))")
    for name in ("apply", "fidelity", "models.LTMSwin", "engine.train"):
        assert f'id="ltm_mm.{name}"' in (tmp_path / "reference.html").read_text()


def test_github_runs_what_the_repository_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    jobs = {name: job["steps"] for name, job in workflow["jobs"].items()}
    runs = {name: [s["run"] for s in steps if "run" in s] for name, steps in jobs.items()}
    assert runs == {"test": [".ci/run", "make docs"], "slow": ["make test-slow"]}
    (rev,) = re.findall(r"rev: v(.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert f"\nruff=={rev} " in (ROOT / "requirements" / "tests.txt").read_text()
