"""What pyproject.toml cannot say: where the file goes that Python reads at its start."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

START = "ltm_mm/compat/ltm_mm.pth"


class BuildWithStart(build_py):
    """Put ``ltm_mm.pth`` beside the package, where Python looks for such files.

    See :mod:`ltm_mm.compat`. A wheel is packed from the build folder, an editable one from the
    folder that the install command writes to.
    """

    def run(self) -> None:
        super().run()
        folder = self.build_lib
        if self.editable_mode:
            folder = self.get_finalized_command("install").install_lib
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.copy_file(START, folder)


setup(cmdclass={"build_py": BuildWithStart})
