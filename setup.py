"""What pyproject.toml cannot say: the folder ``conf`` becomes ``l2v/conf`` in the wheel."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["l2v*"]), "l2v.conf"], package_dir={"l2v.conf": "conf"})
