"""Where the packages lie: the trainer in capo_fast/, the loss library in kernels/, the shipped settings in configs/."""

from setuptools import find_packages, setup

TRAINER = find_packages(include=["capo_fast", "capo_fast.*"])
KERNELS = find_packages("kernels", include=["capo_kernels", "capo_kernels.*"])
DATA = ["capo_fast.configs", "capo_fast.credit.prompts", "capo_fast.tiny.model"]

setup(
    packages=[*TRAINER, *KERNELS, *DATA],
    package_dir={
        "capo_fast": "capo_fast",
        "capo_fast.configs": "configs",  # read with importlib.resources.files("capo_fast.configs")
        "capo_kernels": "kernels/capo_kernels",
    },
    package_data={"capo_fast.tiny": ["*.jsonl*"], **{folder: ["*"] for folder in DATA}},
)
