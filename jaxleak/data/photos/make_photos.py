"""Makes this folder's `tiles.npz` and the 224 and 299 px photographs from their originals (see SOURCES.md).

Three originals come from packages outside jaxleak's own dependencies:

    pip install scikit-image
    pip download scipy==1.9.3 --no-deps --only-binary :all: --python-version 3.10 \\
        --platform manylinux_2_17_x86_64
    apt-get download gcompris-qt-data && dpkg -x gcompris-qt-data_3.1-2_all.deb gcompris

    python jaxleak/data/photos/make_photos.py --scipy-wheel scipy-1.9.3-*.whl \\
        --gcompris gcompris/usr/share/gcompris-qt/rcc/explore_world_animals.rcc
"""

import argparse
import bz2
import hashlib
import importlib.resources
import io
import re
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent

# Square crops of each original as (centre x, centre y, side) in pixels; the first shows the whole subject.
CROPS: dict[str, list[tuple[int, int, int]]] = {
    "astronaut": [
        (256, 256, 512),
        (226, 110, 200),
        (226, 180, 330),
        (195, 330, 360),
        (400, 425, 190),
        (170, 385, 150),
    ],
    "cat": [
        (240, 150, 300),
        (245, 130, 210),
        (164, 115, 130),
        (320, 135, 120),
        (255, 220, 160),
        (200, 160, 240),
    ],
    "coffee": [
        (300, 200, 400),
        (290, 130, 270),
        (368, 281, 180),
        (282, 105, 200),
        (270, 230, 330),
        (230, 260, 240),
    ],
    "galaxies": [
        (500, 436, 600),
        (293, 110, 150),
        (734, 473, 200),
        (122, 400, 140),
        (422, 715, 200),
        (500, 380, 300),
    ],
    "moose": [
        (470, 380, 600),
        (530, 300, 400),
        (505, 350, 240),
        (640, 230, 280),
        (360, 480, 390),
        (512, 341, 683),
    ],
    "officer": [
        (256, 256, 512),
        (268, 180, 280),
        (268, 220, 180),
        (275, 90, 180),
        (268, 260, 420),
        (268, 200, 350),
    ],
    "photographer": [
        (256, 256, 512),
        (250, 160, 230),
        (215, 120, 150),
        (180, 250, 340),
        (300, 330, 300),
        (215, 225, 420),
    ],
    "raccoon": [
        (620, 384, 768),
        (640, 300, 430),
        (650, 300, 300),
        (620, 400, 260),
        (495, 100, 220),
        (560, 380, 600),
    ],
    "retina": [
        (705, 705, 1411),
        (264, 664, 400),
        (705, 660, 600),
        (400, 660, 700),
        (900, 300, 600),
        (700, 1100, 560),
    ],
    "rocket": [
        (322, 214, 427),
        (322, 260, 330),
        (322, 200, 180),
        (322, 370, 114),
        (340, 330, 190),
        (322, 290, 250),
    ],
}
LARGE = ("astronaut", "cat", "coffee", "moose", "raccoon", "retina", "rocket")
LARGE_SIZES = (224, 299)
JPEG_QUALITY = 92

MOOSE_SHA256 = "2252a671c2e0ade9ce6ff6d41957348a81ebccfd952ba59bfddceff0b059ea48"


def read_originals(scipy_wheel: Path, gcompris: Path) -> dict[str, Image.Image]:
    """The ten photographs at their full size, by class name."""
    skimage = importlib.resources.files("skimage") / "data"
    matplotlib = importlib.resources.files("matplotlib") / "mpl-data" / "sample_data"
    files = {
        "astronaut": skimage / "astronaut.png",
        "cat": skimage / "chelsea.png",
        "coffee": skimage / "coffee.png",
        "galaxies": skimage / "hubble_deep_field.jpg",
        "officer": matplotlib / "grace_hopper.jpg",
        "photographer": skimage / "camera.png",
        "retina": skimage / "retina.jpg",
        "rocket": skimage / "rocket.jpg",
    }
    originals: dict[str, Image.Image] = {
        name: Image.open(io.BytesIO(file.read_bytes())) for name, file in files.items()
    }
    with zipfile.ZipFile(scipy_wheel) as wheel:
        raccoon = np.frombuffer(bz2.decompress(wheel.read("scipy/misc/face.dat")), np.uint8)
    originals["raccoon"] = Image.fromarray(raccoon.reshape(768, 1024, 3))
    originals["moose"] = Image.open(io.BytesIO(find_webp(gcompris.read_bytes(), MOOSE_SHA256)))
    return {name: image.convert("RGB") for name, image in sorted(originals.items())}


def find_webp(archive: bytes, sha256: str) -> bytes:
    """The WebP file with this checksum among those stored, uncompressed, in a Qt resource archive."""
    for match in re.finditer(rb"RIFF(.{4})WEBP", archive, re.DOTALL):
        size = int.from_bytes(match.group(1), "little") + 8
        picture = archive[match.start() : match.start() + size]
        if hashlib.sha256(picture).hexdigest() == sha256:
            return picture
    raise SystemExit(f"the archive holds no WebP picture with SHA-256 {sha256}")


def crop(image: Image.Image, centre_x: int, centre_y: int, side: int, size: int) -> Image.Image:
    """A square of `side` pixels around a point, moved inside the picture where it sticks out."""
    side = min(side, *image.size)
    left = min(max(centre_x - side // 2, 0), image.width - side)
    top = min(max(centre_y - side // 2, 0), image.height - side)
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)


def main() -> None:
    """Write the tiles and the large photographs beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scipy-wheel", type=Path, required=True)
    parser.add_argument("--gcompris", type=Path, required=True)
    args = parser.parse_args()
    originals = read_originals(args.scipy_wheel, args.gcompris)

    tiles = [crop(originals[name], *box, size=32) for name in originals for box in CROPS[name]]
    labels = [label for label, name in enumerate(originals) for _ in CROPS[name]]
    np.savez_compressed(
        HERE / "tiles.npz",
        pixels=np.stack([np.asarray(tile) for tile in tiles]),
        labels=np.asarray(labels, np.int32),
        class_names=np.asarray(list(originals)),
    )
    for size in LARGE_SIZES:
        (HERE / str(size)).mkdir(exist_ok=True)
        for name in LARGE:
            picture = crop(originals[name], *CROPS[name][0], size=size)
            picture.save(HERE / str(size) / f"{name}.jpg", quality=JPEG_QUALITY, subsampling=0, optimize=True)


if __name__ == "__main__":
    main()
