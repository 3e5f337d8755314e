"""Packaging of magvit_scale. constraints.txt holds the exact versions that the tests ran with."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="magvit_scale",
    version="0.1.0",
    description="Train MAGVIT (CVPR 2023) on your own videos, from a laptop demo to a SLURM cluster",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["magvit_scale*"]),
    package_data={"magvit_scale.card": ["*.md"], "magvit_scale.page": ["*.html", "*.css"]},
    python_requires=">=3.10,<3.13",
    install_requires=[
        "av>=17",
        "braceexpand>=0.1.7",
        "deepspeed>=0.19.8",
        "einops>=0.8",
        "ffmpeg-python>=0.2",
        "fsspec>=2025.5.1",  # an older one hangs in loader processes, which are forked from one with a connection
        "google-crc32c>=1.6",
        "imageio-ffmpeg>=0.6",
        "lpips>=0.1.4",
        "matplotlib>=3.9",
        "ninja>=1.11",  # DeepSpeed builds its communication on CPUs with it
        "numpy>=2.0",
        "omegaconf>=2.4.0",
        "pillow>=11",
        "safetensors>=0.5",
        "setuptools>=77",  # torch's extension builder needs it at run time
        "submitit>=1.5.4",
        "tensorboard>=2.18",
        "torch>=2.11",
        "torchvision",
        "tqdm>=4.66",
        "webdataset>=1.0.2",
        "zstandard>=0.23",
    ],
    extras_require={
        "dev": [
            "flask>=3.0",  # with flask-cors what moto's server needs; moto[server] brings 30 packages more
            "flask-cors>=4.0",
            "huggingface_hub>=2.4",
            "hypothesis>=6.150",
            "import-linter>=2.3",
            "moto[s3]>=5.1.4",
            "mypy>=1.15",
            "pytest>=8.3",
            "ruff>=0.12",
            "s3fs>=2025.5.1",
            "torch-fidelity>=0.4",  # two libraries of metrics, beside which ours are held
            "torchmetrics>=1.9",
        ],
        "hub": ["huggingface_hub>=2.4"],  # magvit publish push=owner/name, and models by such names
    },
    entry_points={"console_scripts": ["magvit = magvit_scale.cli:command"]},
)
