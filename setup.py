"""What pyproject.toml cannot say: conf/ goes into a wheel as dp/conf; a checkout uses conf/ where it lies."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """Copies conf/ beside the modules, unless the install is editable."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("conf", Path(self.build_lib) / "dp" / "conf", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConf})
