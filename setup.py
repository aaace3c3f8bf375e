"""The compiled part, left out where there is no compiler; all else is in setup.cfg."""

from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "ccserver._native",
            sorted(glob("compiled/*.c")),
            depends=sorted(glob("compiled/*.h")),
            extra_compile_args=["-O3", "-Wall", "-Wextra", "-fvisibility=hidden"],
            optional=True,
        )
    ]
)
