"""Pictures of more than 8 bits, grey arrays, and sizes that are not square."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxleak import InputError, load_dataset
from jaxleak.threat.own_update import _truth
from tests.commands import refusal

RANDOM = np.random.default_rng(0)


def png(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, grey, RGB or RGBA, with every kind of filter; Pillow writes grey ones alone."""
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8).astype(int)
    step, lines, above = 2 * channels, b"", np.zeros(rows.shape[1], int)
    for number, row in enumerate(rows):
        left, corner = (np.concatenate([np.zeros(step, int), line[:-step]]) for line in (row, above))
        near = [left + above - corner - part for part in (left, above, corner)]
        paeth = np.where(
            (abs(near[0]) <= abs(near[1])) & (abs(near[0]) <= abs(near[2])),
            left,
            np.where(abs(near[1]) <= abs(near[2]), above, corner),
        )
        predicted = (0 * row, left, above, (left + above) // 2, paeth)[number % 5]
        lines += bytes([number % 5]) + (row - predicted).astype(np.uint8).tobytes()
        above = row
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def deep(bits: int, channels: int, height: int = 8, width: int = 8) -> np.ndarray:
    pixels = RANDOM.integers(0, 2**bits, (height, width, channels), dtype=np.uint16)
    pixels[0, 0] = 2**bits - 1
    return pixels


def read(folder: Path, **settings) -> np.ndarray:
    data = load_dataset(folder, image_size=8, **settings)
    return data.images(range(len(data)))[0]


def refused(function, *args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [12, 16])
def test_pictures_of_16_bits_are_read_whole(bits, channels, tmp_path):
    pixels = deep(bits, channels)
    (tmp_path / "a.png").write_bytes(png(pixels))
    images = read(tmp_path, pixel_max=2**bits - 1)
    np.testing.assert_allclose(images[0], np.broadcast_to(pixels / (2**bits - 1), (8, 8, 3)), rtol=1e-6)
    if bits == 16:
        np.testing.assert_array_equal(read(tmp_path), images)
        assert "`pixel_max` must be the largest value there can be" in refused(read, tmp_path, pixel_max=4095)
    else:
        assert "with values from 0 to 4095; what is white cannot be told. State it: --pixel-max 4095" in refused(
            read, tmp_path
        )


def test_transparent_parts_are_white(tmp_path):
    pixels = deep(16, 4)
    pixels[:4, :, 3], pixels[4:, :, 3] = 0, 65535
    (tmp_path / "a.png").write_bytes(png(pixels))
    wanted = np.where(pixels[..., 3:] == 0, 1.0, pixels[..., :3] / 65535)
    np.testing.assert_allclose(read(tmp_path)[0], wanted, rtol=1e-6)


def test_pictures_of_8_and_16_bits_may_stand_beside_each_other(tmp_path):
    shallow, pixels = deep(8, 3).astype(np.uint8), deep(16, 3)
    Image.fromarray(shallow).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(png(pixels))
    images = read(tmp_path)
    np.testing.assert_allclose(images[0], shallow / 255, rtol=1e-6)
    np.testing.assert_allclose(images[1], pixels / 65535, rtol=1e-6)


@pytest.mark.parametrize("kind", ["uint16", "float32", "colour"])
def test_tiffs(kind, tmp_path):
    pixels = deep(16, 3 if kind == "colour" else 1)
    if kind == "colour":
        tifffile = pytest.importorskip("tifffile")  # Pillow writes none
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    else:
        stored = pixels[..., 0] if kind == "uint16" else (pixels[..., 0] / 65535).astype(np.float32)
        Image.fromarray(stored).save(tmp_path / "a.tif")
    np.testing.assert_allclose(read(tmp_path)[0], np.broadcast_to(pixels / 65535, (8, 8, 3)), rtol=1e-6)


def test_pixel_max_is_for_more_than_8_bits(tmp_path):
    Image.fromarray(deep(8, 3).astype(np.uint8)).save(tmp_path / "a.png")
    assert "those in" in refused(read, tmp_path, pixel_max=4095)
    assert "`pixel_max` is for pictures of your own; photos has 255" in refused(load_dataset, "photos", pixel_max=4095)
    assert "`pixel_max` must be above 0" in refused(read, tmp_path, pixel_max=0)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float64])
def test_grey_arrays_with_a_stated_white(dtype, tmp_path):
    pixels = deep(12, 5).transpose(2, 0, 1)  # [n, h, w]
    np.savez(tmp_path / "a.npz", images=pixels.astype(dtype), labels=[0, 1, 2, 1, 0])
    np.save(tmp_path / "a.npy", pixels.astype(dtype))
    for file in (tmp_path / "a.npz", tmp_path / "a.npy"):
        data = load_dataset(file, pixel_max=4095)
        assert data.image_shape == (8, 8, 1)
        np.testing.assert_allclose(data.images(range(5))[0][..., 0], pixels / 4095, rtol=1e-6)
        assert load_dataset(file, pixel_max=4095, image_size=(4, 6)).images([0])[0].shape == (1, 4, 6, 1)
        text = refused(load_dataset, file)
        assert "--pixel-max" in text
        assert "4095" in text
        assert "it is 255, and pixels go from" in refused(load_dataset, file, pixel_max=255)
    np.save(tmp_path / "a.npy", pixels.astype(np.int32) - 1024)
    assert "and 0 the least" in refused(load_dataset, tmp_path / "a.npy", pixel_max=4095)


def test_an_array_that_may_be_one_picture_or_several(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((8, 8, 3), np.uint8))
    assert "[n, h, w], or [n, h, w, c] with c 1 or 3; got (8, 8, 3)" in refused(load_dataset, tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros((5, 3, 8, 8), np.uint8))
    assert "Transpose torch's [n, c, h, w]" in refused(load_dataset, tmp_path / "a.npy")


def test_sizes_that_are_not_square(tmp_path):
    wide = RANDOM.integers(0, 256, (12, 20, 3), dtype=np.uint8)
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide[:, ::-1]).save(tmp_path / "b.png")
    data = load_dataset(tmp_path, image_size=(12, 20))
    assert data.image_shape == (12, 20, 3)
    np.testing.assert_allclose(data.images([0])[0][0], wide / 255, rtol=1e-6)
    cut = load_dataset(tmp_path, image_size=(12, 10)).images([0])[0][0]
    np.testing.assert_allclose(cut, wide[:, 5:15] / 255, rtol=1e-6)
    half = load_dataset(tmp_path, image_size=(6, 10)).images([0])[0][0]
    expected = Image.fromarray(wide).resize((10, 6), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(half * 255, np.asarray(expected), atol=1e-4)
    assert load_dataset(tmp_path).image_shape == (32, 32, 3)
    pixels, labels, _ = _truth(tmp_path, None, (12, 20, 3), 2)
    np.testing.assert_allclose(pixels[0], wide / 255, rtol=1e-6)
    assert labels == [0, 1]


def test_truths_for_networks_of_one_channel(tmp_path):
    grey = RANDOM.integers(0, 256, (8, 8), dtype=np.uint8)
    (tmp_path / "folder").mkdir()
    Image.fromarray(grey).save(tmp_path / "folder" / "a.png")
    np.testing.assert_allclose(_truth(tmp_path / "folder", None, (8, 8, 1), 1)[0][0, ..., 0], grey / 255, rtol=1e-6)
    np.save(tmp_path / "a.npy", 16 * grey[None].astype(np.uint16))
    pixels, labels, _ = _truth(tmp_path / "a.npy", None, (8, 8, 1), 1, pixel_max=4080)
    np.testing.assert_allclose(pixels[0, ..., 0], grey / 255, rtol=1e-6)
    assert labels == [-1]  # an array has none
    assert _truth(tmp_path / "a.npy", [4], (8, 8, 1), 1, pixel_max=4080)[1] == [4]


@pytest.mark.parametrize("size", ["8x", "a", "8x8x8", "8,8", "0x8"])
def test_sizes_that_are_none(size, tmp_path):
    line = refusal("run", "--dataset", "photos", "--image-size", size, "--out", tmp_path / "run")
    assert line.startswith("jaxleak: `image_size` must be")


def test_a_white_without_pictures_is_refused():
    with pytest.raises(InputError, match="give --truth too"):
        _truth(None, None, (8, 8, 1), 1, pixel_max=4095)
