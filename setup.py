"""Packaging, after OpenMMLab's convention.

Only ``requirements/runtime.txt`` is required: an installed mmengine, mmcv,
mmdet or mmseg (upstream's or onedl's) is used as it is and never replaced.
``requirements/mminstall.txt`` holds them for who has none.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(name: str) -> list[str]:
    """The requirement lines of ``requirements/<name>.txt``, comments left out."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def version() -> str:
    """``__version__`` of the package, read without importing it."""
    text = (ROOT / "ltm_mm" / "__init__.py").read_text()
    return text.split('__version__ = "')[1].split('"')[0]


setup(
    name="ltm_mm",
    version=version(),
    description="Learnable token merging for detection and segmentation with OpenMMLab",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["ltm_mm", "ltm_mm.*"]),
    package_data={"ltm_mm": ["py.typed"], "ltm_mm.report": ["templates/*"]},
    install_requires=requirements("runtime"),
    extras_require={
        "mm": requirements("mminstall"),
        "tests": requirements("tests"),
        "optional": requirements("optional"),
    },
)
