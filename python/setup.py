"""What pyproject.toml cannot say: a build begins anew, so that no wheel takes along a libmoekit.so that an earlier one had."""
import os
import shutil

import setuptools
from setuptools.command.build_py import build_py


class BuildAnew(build_py):
    def run(self):
        shutil.rmtree(os.path.join(self.build_lib, "moekit"), ignore_errors=True)
        super().run()


setuptools.setup(cmdclass={"build_py": BuildAnew})
