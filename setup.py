"""Packaging beyond pyproject.toml: refuse a checkout whose `jmt_fast/kernels` link was not restored."""

from pathlib import Path

from setuptools import setup

if not (Path(__file__).parent / "jmt_fast" / "kernels" / "__init__.py").is_file():
    raise SystemExit(
        "jmt_fast/kernels is not a link to ../kernels: clone with `git -c core.symlinks=true clone`, "
        "or run `ln -sfn ../kernels jmt_fast/kernels`"
    )

setup()
