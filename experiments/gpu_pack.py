"""What a machine without a network needs for gpu_throughput.py: wheels of what it lacks, and table 1's images.

python -m experiments.gpu_pack --out gpu-pack --data-dir DIR
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

import jaxleak
from experiments.harness import arguments

MEGABYTES = 64
# What jaxleak imports and the machine lacks; of pyarrow the smallest that it takes.
PACKED = (
    *("flax", "optax", "jaxopt", "jaxtyping", "wadler-lindig", "msgpack", "PyYAML", "tyro", "rich", "markdown-it-py"),
    *("mdurl", "pygments", "docstring-parser", "typeguard", "dm-pix", "chex", "toolz", "pyarrow==18.1.0"),
    *("safetensors", "absl-py", "typing-extensions"),
)
IMAGES = "cifar100-table1.npz"


def main() -> None:
    options = arguments(__doc__, out={"type": Path, "default": Path("gpu-pack"), "help": "where it goes"})
    pack(options.out, options.data_dir)


def pack(folder: Path, data_dir: str) -> None:
    """Wheels and images for a machine without a network.

    Raises:
        SystemExit: they are more than may be carried.
    """
    folder.mkdir(parents=True, exist_ok=True)
    platform = ["--python-version", "3.12", "--only-binary", ":all:", "--platform", "manylinux_2_28_x86_64"]
    platform += ["--platform", "manylinux_2_17_x86_64", "--platform", "manylinux2014_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    subprocess.run([*command, *platform, *PACKED], check=True)
    data = jaxleak.load_dataset("cifar100", split="train", data_dir=data_dir)
    indices = data.random_indices(20, seed=2022)
    images, labels = data.images(indices)
    pixels = np.round(images * 255).astype(np.uint8)
    np.savez_compressed(folder / IMAGES, images=pixels, labels=labels, class_names=np.array(data.class_names))
    size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    print(f"{folder}: {len(list(folder.iterdir()))} files, {size:.1f} MB")
    if size > MEGABYTES:
        raise SystemExit(f"at most {MEGABYTES} MB may be carried")


if __name__ == "__main__":
    main()
