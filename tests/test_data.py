import importlib.resources
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxleak.data import DATASETS, Dataset, load_dataset
from jaxleak.errors import InputError

PROJECT = Path(__file__).parent.parent
PREPARED = Path(os.environ.get("JAXLEAK_DATA_DIR") or PROJECT.parent / "shared" / "data" / "tfds")
SIZES = {"train": 6, "test": 3}


def needs(name: str):
    return pytest.mark.skipif(not (PREPARED / name).is_dir(), reason=f"{name} is not prepared")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXLEAK_DATA_DIR", raising=False)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def fails(*args, **kwargs) -> str:
    with pytest.raises(InputError) as error:
        load_dataset(*args, **kwargs)
    return one_line(error)


def prepare(data_dir: Path, name: str, *, splits=("train", "test"), size=32, channels=3, file_format="array_record"):
    """Writes a small data set as tensorflow-datasets does: shade of picture i is 10 i, its label i % 3."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    folder = data_dir / name / "1.0.0"
    folder.mkdir(parents=True)
    label = tfds.features.Text() if name == "lfw" else tfds.features.ClassLabel(names=["ant", "bee", "cow"])
    features = {"image": tfds.features.Image(shape=(size, size, channels)), "label": label}
    if name == "cifar100":
        features["id"] = tfds.features.Text()
    features: Any = tfds.features.FeaturesDict(features)
    features.save_config(str(folder))
    serializer = ExampleSerializer(features.get_serialized_info())
    for split in splits:
        file = folder / f"{name}-{split}.{file_format}-00000-of-00001"
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for i in np.random.default_rng(0).permutation(SIZES[split]).tolist():
            pixels = np.full((size, size, channels), 10 * i, np.uint8)
            example = {"image": png(pixels), "label": np.int64(i % 3)}
            if name == "lfw":
                example["label"] = [b"Zoe", b"\xc3\x89mile", b"Ada"][i % 3]
            if name == "cifar100":
                example["id"] = f"{split}_{i}".encode()
            writer.write(serializer.serialize_example(example))
        writer.close()
    info = {
        "name": name,
        "version": "1.0.0",
        "fileFormat": file_format,
        "splits": [
            {
                "name": split,
                "numBytes": "1",
                "shardLengths": [str(SIZES[split])],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
            for split in splits
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return data_dir


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def save_picture(file: Path, shade: int = 128, size=(40, 30), mode: str = "RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (shade,) * len(mode) if len(mode) > 1 else shade).save(file)


# --- photos -------------------------------------------------------------------------------------------------


def test_photos_are_package_data():
    folder = importlib.resources.files("jaxleak.data") / "photos"
    for file in ("tiles.npz", "SOURCES.md", "make_photos.py", "224/cat.jpg", "299/cat.jpg"):
        assert (folder / file).is_file()
    sources = (folder / "SOURCES.md").read_text()
    assert all(f"| {name} |" in sources for name in load_dataset("photos").class_names)


def test_photos_tiles():
    photos = load_dataset("photos")
    images, labels = photos.images(range(len(photos)))
    assert images.shape == (60, 32, 32, 3)
    assert images.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert labels.dtype == np.int32
    assert photos.num_classes == 10
    assert np.bincount(labels).tolist() == [6] * 10
    assert (images.std(axis=(1, 2, 3)) > 0.04).all()
    assert len(np.unique(images.reshape(60, -1), axis=0)) == 60
    assert photos.split == "all"


def test_most_photos_are_coloured():
    images, _ = load_dataset("photos").images(range(60))
    coloured = np.abs(images[..., 0] - images[..., 2]).mean(axis=(1, 2)) > 0.01
    assert coloured.sum() == 54  # all but the photographer, a grey photograph


@pytest.mark.parametrize("size", [224, 299])
def test_large_photos(size):
    large, tiles = load_dataset("photos", image_size=size), load_dataset("photos")
    images, labels = large.images(range(len(large)))
    assert images.shape == (7, size, size, 3)
    assert large.class_names == tiles.class_names
    for image, label in zip(images, labels, strict=True):  # a large photograph and its class's first tile agree
        small = Image.fromarray((image * 255).astype(np.uint8)).resize((32, 32), Image.Resampling.LANCZOS)
        tile, _ = tiles.images([6 * int(label)])
        assert np.abs(np.asarray(small) / 255 - tile[0]).mean() < 0.01


def test_photos_refuse_other_sizes_and_splits():
    assert "must be one of 32, 224, 299; got 64" in fails("photos", image_size=64)
    assert fails("photos", split="train") == "`split` must be one of all; got 'train'."
    assert "`image_size` must be above 0; got 0" in fails("photos", image_size=0)


# --- indices ------------------------------------------------------------------------------------------------


def test_order_and_repeats_follow_the_request():
    photos = load_dataset("photos")
    images, labels = photos.images([59, 0, 59])
    assert labels.tolist() == [9, 0, 9]
    np.testing.assert_array_equal(images[0], images[2])
    images, labels = photos.images([])
    assert images.shape == (0, 32, 32, 3)
    assert labels.shape == (0,)


@pytest.mark.parametrize("index", [-1, 60, 10**12, 1.5, True, "3"])
def test_wrong_index(index):
    with pytest.raises(InputError) as error:
        load_dataset("photos").images([0, index])
    expected = f"`images` index {index!r} is not in photos; the valid range is 0 to 59."
    assert one_line(error) == expected


def test_wrong_index_of_a_part_of_a_data_set():
    part = Dataset(
        name="part",
        split="train",
        image_shape=(1, 1, 1),
        class_names=("a", "b"),
        index=np.asarray([7, 3]),
        reader=lambda positions: (np.zeros((len(positions), 1, 1, 1)), np.asarray(positions)),
    )
    assert part.images([3, 7])[1].tolist() == [1, 0]
    with pytest.raises(InputError, match="index 5 is not in part/train; it holds 2 of the indices from 3 to 7"):
        part.images([5])


def test_random_indices():
    photos = load_dataset("photos")
    drawn = photos.random_indices(20, seed=1)
    assert len(set(drawn)) == 20
    assert all(type(index) is int and 0 <= index < 60 for index in drawn)
    assert drawn == photos.random_indices(20, seed=1)
    assert drawn != photos.random_indices(20, seed=2)
    assert photos.random_indices(60, seed=1)[:20] == drawn
    assert sorted(photos.random_indices(60, seed=1)) == list(range(60))


def test_random_indices_do_not_depend_on_the_stored_order(tmp_path):
    cifar100 = load_dataset("cifar100", data_dir=prepare(tmp_path, "cifar100"))
    mnist = load_dataset("mnist", data_dir=prepare(tmp_path, "mnist"))
    assert cifar100.random_indices(4, seed=0) == mnist.random_indices(4, seed=0)


@pytest.mark.parametrize(
    ("count", "seed", "message"),
    [
        (0, 0, "`num_images` must be above 0; got 0"),
        (-3, 0, "`num_images` must be above 0; got -3"),
        (61, 0, "`num_images` must be at most 60, all of photos; got 61"),
        (1, -1, "`image_seed` must be 0 or more; got -1"),
    ],
)
def test_wrong_random_indices(count, seed, message):
    with pytest.raises(InputError) as error:
        load_dataset("photos").random_indices(count, seed)
    assert message in one_line(error)


def batches_of(drawn: list[int], batch: int) -> np.ndarray:
    """The labels of each batch of photos [n, batch]."""
    return load_dataset("photos").images(drawn)[1].reshape(-1, batch)


@pytest.mark.parametrize(
    ("labels", "batch", "most"), [("any", 7, 8), ("distinct", 4, 15), ("same", 3, 20), ("same", 6, 10), ("same", 1, 60)]
)
def test_random_batches(labels, batch, most):
    photos = load_dataset("photos")
    whole = photos.random_batches(most, batch, 1, labels)
    assert len(set(whole)) == len(whole) == most * batch
    assert all(type(index) is int and 0 <= index < 60 for index in whole)
    classes = [len(set(one)) for one in batches_of(whole, batch).tolist()]
    assert labels == "any" or set(classes) == {batch if labels == "distinct" else 1}
    for count in (1, 2, most - 1):  # a larger count only appends
        assert photos.random_batches(count, batch, 1, labels) == whole[: count * batch]
    assert photos.random_batches(2, batch, 2, labels) != whole[: 2 * batch]


def test_batches_of_any_labels_are_the_random_images():
    photos = load_dataset("photos")
    assert photos.random_batches(3, 5, 4) == photos.random_indices(15, 4)
    labels = batches_of(photos.random_batches(12, 5, 4), 5)
    assert {len(set(one)) for one in labels.tolist()} > {4}  # neither all distinct nor all the same


def test_batches_are_drawn_over_all_classes():
    assert len(set(batches_of(load_dataset("photos").random_batches(8, 3, 0, "same"), 3)[:, 0])) > 4


@pytest.mark.parametrize(
    ("count", "batch", "labels", "message"),
    [
        (0, 2, "same", "`num_images` must be above 0; got 0."),
        (9, 7, "any", "`batch` asks for 9 times 7 images; photos has 60."),
        (
            11,
            6,
            "same",
            "`batch` asks for 11 batches of 6 images with same labels; photos has 10. Use fewer or smaller",
        ),
        (1, 7, "same", "photos has 0. Use fewer or smaller batches, or --batch-labels any."),
        (1, 11, "distinct", "`batch` asks for 1 batches of 11 images with distinct labels; photos has 0."),
        (1, 2, "destinct", "`batch_labels` must be one of any, distinct, same; got 'destinct'. Did you mean"),
    ],
)
def test_batches_that_there_are_not(count, batch, labels, message):
    with pytest.raises(InputError) as error:
        load_dataset("photos").random_batches(count, batch, 0, labels)
    assert message in one_line(error)


# --- prepared by tensorflow-datasets ------------------------------------------------------------------------


def test_index_is_the_original_one(tmp_path):
    cifar100 = load_dataset("cifar100", data_dir=prepare(tmp_path, "cifar100"))
    assert cifar100.split == "train"
    assert cifar100.index.tolist() != list(range(6))  # stored in another order
    images, labels = cifar100.images(range(6))
    np.testing.assert_allclose(images[:, 0, 0, 0] * 255, [0, 10, 20, 30, 40, 50], rtol=1e-6)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert cifar100.class_names == ("ant", "bee", "cow")


def test_index_is_the_position_where_no_id_is_stored(tmp_path):
    mnist = load_dataset("mnist", data_dir=prepare(tmp_path, "mnist", size=28, channels=1), split="test")
    images, labels = mnist.images(range(3))
    assert images.shape == (3, 28, 28, 1)
    shades = np.round(images[:, 0, 0, 0] * 25.5).astype(int)
    assert sorted(shades) == [0, 1, 2]
    np.testing.assert_array_equal(labels, shades % 3)


def test_lfw_classes_are_the_people_found_and_pictures_are_32_px(tmp_path):
    lfw = load_dataset("lfw", data_dir=prepare(tmp_path, "lfw", size=50))
    assert lfw.class_names == ("Ada", "Zoe", "Émile")
    images, labels = lfw.images(range(6))
    assert images.shape == (6, 32, 32, 3)
    names = [("Zoe", "Émile", "Ada")[round(shade * 25.5) % 3] for shade in images[:, 0, 0, 0].tolist()]
    assert [lfw.class_names[label] for label in labels] == names
    assert load_dataset("lfw", data_dir=tmp_path, image_size=20).images([0])[0].shape == (1, 20, 20, 3)


def test_split_is_the_one_prepared(tmp_path):
    prepare(tmp_path, "mnist", splits=["test"])
    assert load_dataset("mnist", data_dir=tmp_path).split == "test"
    assert fails("mnist", data_dir=tmp_path, split="train") == "`split` must be one of test; got 'train'."
    message = fails("cifar100", data_dir=prepare(tmp_path, "cifar100"), split="trian")
    assert message == "`split` must be one of test, train; got 'trian'. Did you mean 'train'?"
    next(tmp_path.glob("cifar100/*/*-train.array_record*")).unlink()
    assert load_dataset("cifar100", data_dir=tmp_path).split == "test"


def test_the_newest_version_is_read(tmp_path):
    prepare(tmp_path, "mnist", splits=["test"])
    (tmp_path / "mnist" / "1.0.0").rename(tmp_path / "mnist" / "9.0.0")
    prepare(tmp_path, "mnist")
    (tmp_path / "mnist" / "9.0.0").rename(tmp_path / "mnist" / "0.10.0")
    assert load_dataset("mnist", data_dir=tmp_path).split == "train"


def test_data_directory_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLEAK_DATA_DIR", str(prepare(tmp_path / "mine", "mnist")))
    assert len(load_dataset("mnist")) == 6
    monkeypatch.setenv("JAXLEAK_DATA_DIR", str(tmp_path / "missing"))
    assert fails("mnist").startswith(f"JAXLEAK_DATA_DIR '{tmp_path / 'missing'}' is not a directory")
    monkeypatch.delenv("JAXLEAK_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"is not prepared in {tmp_path / 'tensorflow_datasets'};" in fails("mnist")


def test_missing_data_directory(tmp_path):
    missing = tmp_path / "missing"
    assert fails("mnist", data_dir=missing).startswith(f"`data_dir` '{missing}' is not a directory;")


@pytest.mark.parametrize("name", ["cifar100", "mnist", "lfw"])
def test_not_prepared_says_the_command(tmp_path, name):
    message = fails(name, data_dir=tmp_path)
    assert message.startswith(f"`dataset` {name} is not prepared in {tmp_path}; ")
    assert "needs TensorFlow: pip install tensorflow && python -c" in message
    python = re.search(r'python -c "(.*)"$', message)
    assert python
    compile(python[1], "command", "exec")
    assert f"tfds.builder('{name}', data_dir='{tmp_path}', file_format='array_record')" in python[1]
    assert python[1].endswith(".download_and_prepare()")


def test_prepared_as_tfrecord(tmp_path):
    prepare(tmp_path, "mnist", file_format="tfrecord")
    message = fails("mnist", data_dir=tmp_path)
    assert "is stored as tfrecord, which only TensorFlow reads" in message
    assert "file_format='array_record'" in message


def test_cache_is_used_and_recomputed_when_unreadable(tmp_path):
    prepare(tmp_path, "cifar100")
    expected = load_dataset("cifar100", data_dir=tmp_path).index.tolist()
    (file,) = (tmp_path / "cache" / "jaxleak").iterdir()
    assert file.name.startswith("cifar100-1.0.0-train-id-")
    good = file.read_bytes()
    np.save(file, np.asarray([f"train_{i}".encode() for i in range(6)]))
    assert load_dataset("cifar100", data_dir=tmp_path).index.tolist() == list(range(6))
    for bad in (b"", good[:-1], b"not an array"):
        file.write_bytes(bad)
        assert load_dataset("cifar100", data_dir=tmp_path).index.tolist() == expected
        assert file.read_bytes() == good
    np.save(file, np.arange(3))
    assert load_dataset("cifar100", data_dir=tmp_path).index.tolist() == expected
    assert list(file.parent.iterdir()) == [file]


def test_cache_does_not_outlive_its_data(tmp_path):
    prepare(tmp_path, "cifar100")
    load_dataset("cifar100", data_dir=tmp_path)
    stored = next(tmp_path.glob("cifar100/*/*-train.array_record*"))
    os.utime(stored, (0, 0))
    load_dataset("cifar100", data_dir=tmp_path)
    assert len(list((tmp_path / "cache" / "jaxleak").iterdir())) == 2


def test_cache_directory_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where a directory should be")
    cifar100 = load_dataset("cifar100", data_dir=prepare(tmp_path, "cifar100"))
    assert cifar100.images([5])[1].tolist() == [2]


def test_module_imports_nothing_heavy_and_reading_needs_no_tensorflow(tmp_path):
    prepare(tmp_path, "cifar100")
    code = f"""
import sys
import jaxleak.data
assert not {{"tensorflow_datasets", "PIL", "tensorflow", "torch"}} & set(sys.modules)
jaxleak.data.load_dataset("cifar100", data_dir={str(tmp_path)!r}).images([0])
jaxleak.data.load_dataset("photos").images([0])
assert not {{"tensorflow", "torch"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""


# --- the prepared data sets themselves ----------------------------------------------------------------------


@needs("cifar100")
def test_cifar100_index_20319():
    import tensorflow_datasets as tfds

    cifar100 = load_dataset("cifar100", data_dir=PREPARED)
    assert len(cifar100) == 50_000
    assert cifar100.num_classes == 100
    assert np.array_equal(np.sort(cifar100.index), np.arange(50_000))
    images, labels = cifar100.images([20319, 25])
    source: Any = tfds.data_source("cifar100", split="train", data_dir=PREPARED, download=False)
    stored = {}
    for position in np.flatnonzero(np.isin(cifar100.index, [20319, 25, 0, 49_999])).tolist():
        record = source[position]
        assert record["id"] == f"train_{cifar100.index[position]:05}".encode()
        stored[int(cifar100.index[position])] = record
    for image, label, index in zip(images, labels, (20319, 25), strict=True):
        np.testing.assert_allclose(image * 255, stored[index]["image"], atol=1e-4)
        assert label == stored[index]["label"]
    test = load_dataset("cifar100", data_dir=PREPARED, split="test")
    assert len(test) == 10_000
    with pytest.raises(InputError, match="index 10000 is not in cifar100/test; the valid range is 0 to 9999"):
        test.images([10_000])


@needs("mnist")
def test_mnist():
    mnist = load_dataset("mnist", data_dir=PREPARED, split="test")
    images, labels = mnist.images(mnist.random_indices(500, seed=0))
    assert len(mnist) == 10_000
    assert images.shape == (500, 28, 28, 1)
    assert images.max() == 1
    assert images.min() == 0
    assert mnist.class_names == tuple("0123456789")
    assert set(labels.tolist()) == set(range(10))


@needs("lfw")
def test_lfw():
    lfw = load_dataset("lfw", data_dir=PREPARED)
    images, labels = lfw.images(range(0, len(lfw), 50))
    assert images.shape[1:] == (32, 32, 3)
    assert list(lfw.class_names) == sorted(lfw.class_names)
    assert "George_W_Bush" in lfw.class_names
    assert labels.min() >= 0
    assert labels.max() < lfw.num_classes
    assert (images.std(axis=(1, 2, 3)) > 0.05).all()


# --- own pictures -------------------------------------------------------------------------------------------


def test_folder_with_class_folders(tmp_path):
    save_picture(tmp_path / "dog" / "b.png", 20)
    save_picture(tmp_path / "dog" / "a.jpg", 10)
    save_picture(tmp_path / "cat" / "z.png", 30, mode="L")
    (tmp_path / ".DS_Store").write_text("hidden")
    (tmp_path / "dog" / ".DS_Store").write_text("hidden")
    folder = load_dataset(tmp_path)
    images, labels = folder.images(range(3))
    assert folder.class_names == ("cat", "dog")
    assert labels.tolist() == [0, 1, 1]
    assert images.shape == (3, 32, 32, 3)
    np.testing.assert_allclose(images[:, 5, 5, 0] * 255, [30, 10, 20], atol=2)
    assert folder.name == str(tmp_path)
    assert load_dataset(str(tmp_path), image_size=8).image_shape == (8, 8, 3)


def test_flat_folder_has_a_class_for_each_picture(tmp_path):
    save_picture(tmp_path / "b.png")
    save_picture(tmp_path / "a.png")
    folder = load_dataset(tmp_path)
    assert folder.class_names == ("a.png", "b.png")
    assert folder.images([0, 1])[1].tolist() == [0, 1]


def test_one_picture_is_enough(tmp_path):
    save_picture(tmp_path / "me.png")
    folder = load_dataset(tmp_path)
    assert folder.class_names == ("me.png", "other")
    assert len(folder) == 1


def test_pictures_are_cropped_to_the_centre_turned_and_put_on_white(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    turned = Image.fromarray(np.repeat(np.arange(0, 200, 20, dtype=np.uint8)[:, None], 10, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    turned.save(tmp_path / "b.png", exif=exif)
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(tmp_path / "c.png")
    images, _ = load_dataset(tmp_path, image_size=10).images([0, 1, 2])
    np.testing.assert_array_equal(images[0], 1)
    np.testing.assert_allclose(images[1, :, 0, 0] * 255, np.arange(180, -1, -20), atol=1e-4)
    np.testing.assert_array_equal(images[2], 1)


def test_resizing_is_pillows_antialiased_bilinear(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    images, _ = load_dataset(tmp_path).images([0])
    expected = Image.fromarray(noise).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(images[0] * 255, np.asarray(expected), atol=1e-4)


def test_a_file_that_is_not_a_picture(tmp_path):
    save_picture(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    message = fails(tmp_path)
    assert "notes.txt" in message
    assert "is not a picture" in message


def test_a_truncated_picture(tmp_path):
    save_picture(tmp_path / "a.jpg", size=(200, 200))
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[:-200])
    with pytest.raises(InputError, match=r"a\.jpg' cannot be read") as error:
        load_dataset(tmp_path).images([0])
    one_line(error)


def test_folder_mistakes(tmp_path):
    assert "holds no pictures" in fails(tmp_path)
    save_picture(tmp_path / "cat" / "a.png")
    (tmp_path / "readme.md").write_text("")
    assert "beside them, 'readme.md'" in fails(tmp_path)
    (tmp_path / "readme.md").unlink()
    (tmp_path / "cat" / "deeper").mkdir()
    assert "deeper', which is a folder inside a class folder; remove it." in fails(tmp_path)
    (tmp_path / "cat" / "deeper").rmdir()
    assert fails(tmp_path, split="train") == "`split` must be one of all; got 'train'."


@pytest.mark.parametrize("key", ["images", "pixels"])
def test_npz(tmp_path, key):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 1), dtype=np.uint8)
    labels = np.asarray([2, 0, 0, 1, 2])
    np.savez(tmp_path / "a.npz", **{key: pixels, "labels": labels})
    own = load_dataset(str(tmp_path / "a.npz"))
    images, read = own.images([4, 1])
    np.testing.assert_allclose(images * 255, pixels[[4, 1]], atol=1e-4)
    assert read.tolist() == [2, 0]
    assert own.class_names == ("0", "1", "2")
    assert own.image_shape == (8, 6, 1)


def test_npz_of_floats_with_class_names_and_another_size(tmp_path):
    pixels = np.random.default_rng(0).random((2, 8, 8, 3))
    np.savez(tmp_path / "a.npz", images=pixels, labels=[0, 1], class_names=["x", "y", "z"])
    own = load_dataset(tmp_path / "a.npz")
    np.testing.assert_allclose(own.images([0, 1])[0], pixels, rtol=1e-6)
    assert own.class_names == ("x", "y", "z")
    smaller, _ = load_dataset(tmp_path / "a.npz", image_size=4).images([0, 1])
    assert smaller.shape == (2, 4, 4, 3)
    assert smaller.dtype == np.float32
    np.testing.assert_allclose(smaller.mean(), pixels.mean(), atol=0.02)


GOOD = np.zeros((2, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": GOOD}, "must hold arrays `images` (or `pixels`) and `labels`; it has images"),
        ({"images": GOOD[0], "labels": [0]}, "[n, h, w, c] with c 1 or 3; got (8, 8, 3)"),
        ({"images": GOOD.transpose(0, 3, 1, 2), "labels": [0, 1]}, "c 1 or 3; got (2, 3, 8, 8)"),
        ({"images": GOOD[:0], "labels": []}, "got (0, 8, 8, 3)"),
        ({"images": GOOD.astype(int), "labels": [0, 1]}, "uint8 or float in [0, 1]; got int64"),
        ({"images": GOOD + 255.0, "labels": [0, 1]}, "must be in [0, 1]; got 255 to 255. Scale"),
        (
            {"images": GOOD * np.nan, "labels": [0, 1]},
            "images must be finite; not those of index 0, 1. Leave these out.",
        ),
        ({"images": GOOD, "labels": [0]}, "labels must be 2 whole numbers from 0"),
        ({"images": GOOD, "labels": [0.0, 1.0]}, "labels must be 2 whole numbers from 0"),
        ({"images": GOOD, "labels": [0, -1]}, "labels must be whole numbers from 0; the least is -1."),
        ({"images": GOOD, "labels": [0, 2], "class_names": ["a", "b"]}, "label 2 but only 2 `class_names`"),
        ({"images": np.asarray([None]), "labels": [0]}, "nor a readable .npz file"),
    ],
)
def test_npz_mistakes(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    assert message in fails(tmp_path / "a.npz")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken"])
def test_a_file_that_is_not_an_npz(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    assert "is neither a folder of pictures nor a readable .npz file" in fails(tmp_path / "a.npz")


def test_a_part_of_an_npz_that_is_no_array(tmp_path):
    np.savez(tmp_path / "a.npz", images=GOOD)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("labels.npy", b"0 1 0")
    assert "(labels in it is no array)" in fails(tmp_path / "a.npz")


def test_classes_in_a_column_are_classes(tmp_path):
    """As Keras's data sets have them."""
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 4, 4, 3), np.uint8), labels=[[6], [0], [9]])
    data = load_dataset(tmp_path / "a.npz")
    assert data.images(range(3))[1].tolist() == [6, 0, 9]
    assert len(data.class_names) == 10


def test_one_picture_is_told_to_go_into_a_folder(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a.png' is one picture; give a folder that holds it"):
        load_dataset(tmp_path / "a.png")


def test_in_an_array_without_labels_each_picture_is_a_class(tmp_path):
    np.save(tmp_path / "a.npy", GOOD)
    own = load_dataset(tmp_path / "a.npy")
    assert own.class_names == ("0", "1")
    assert own.images([0, 1])[1].tolist() == [0, 1]


# --- names --------------------------------------------------------------------------------------------------


def test_unknown_data_set():
    message = fails("cifar10")
    assert message.startswith("`dataset` must be one of cifar100, lfw, mnist, photos, text; got 'cifar10'.")
    assert "Did you mean 'cifar100'?" in message
    assert message.endswith("A folder of pictures or an .npz file works too.")
    assert sorted(DATASETS) == ["cifar100", "lfw", "mnist", "photos", "text"]


@pytest.mark.parametrize("name", ["pictures/mine", "mine.npz", Path("mine")])
def test_missing_path(name):
    assert f"`dataset` {str(name)!r} does not exist" in fails(name)
