"""The embedded text: its vocabulary, its texts by length, and texts of one's own."""

from pathlib import Path

import numpy as np
import pytest

import jaxleak
from jaxleak.data.texts import readable
from jaxleak.errors import InputError

FOLDER = Path(jaxleak.__file__).parent / "data" / "text"


def test_the_first_text():
    data = jaxleak.load_dataset("text", length=9)
    texts, labels = data.images([0])
    assert texts.shape == (1, 9)
    assert readable(texts[0], data.class_names) == "Alice was beginning to get very"
    assert labels[0] == texts[0, -1]
    assert repr(data) == "Dataset(text/all: 449 texts of 9 tokens, 512 tokens)"


@pytest.mark.parametrize("length", [4, 64])
def test_texts_of_a_length_begin_alike(length):
    data, usual = jaxleak.load_dataset("text", length=length), jaxleak.load_dataset("text")
    chosen = [0, 7, 300]
    shared = min(length, 16)
    np.testing.assert_array_equal(data.images(chosen)[0][:, :shared], usual.images(chosen)[0][:, :shared])
    assert len(data) >= 400


def test_the_vocabulary_is_the_tokenizers():
    """What is stored is what `tokenizers` makes of the text, and gives the text back."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    lines = (FOLDER / "text.txt").read_text().splitlines()
    with np.load(FOLDER / "text.npz") as stored:
        tokens, vocabulary = stored["tokens"], stored["vocabulary"]
    encoded = [tokenizer.encode(line).ids for line in lines]
    assert tokens.tolist() == [token for ids in encoded for token in ids]
    assert [readable(ids, vocabulary) for ids in encoded] == lines
    assert vocabulary.tolist() == [tokenizer.id_to_token(token) for token in range(len(vocabulary))]
    assert vocabulary[0] == "[MASK]"


def test_a_text_of_ones_own(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "own.txt").write_text("Alice was beginning to get very tired.\n\nThe end of it all.\n")
    data = jaxleak.load_dataset(tmp_path / "own.txt", length=4)
    texts, _ = data.images([0, 1])
    assert readable(texts[0], data.class_names) == "Alice was begin"
    assert readable(texts[1], data.class_names) == "The end of it"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"length": 1}, "`length` must be at least 2, a token and the next; got 1."),
        ({"length": 6000}, "`length` must be at most 5922, all tokens of text; got 6000."),
        ({"image_size": 32}, "`image_size` is for pictures; leave it out with the data set text."),
        ({"split": "test"}, "`split` must be one of all; got 'test'."),
    ],
)
def test_what_no_text_has_is_refused(settings, complaint):
    with pytest.raises(InputError) as refused:
        jaxleak.load_dataset("text", **settings)
    assert str(refused.value) == complaint


def test_pictures_have_no_length():
    with pytest.raises(InputError, match=r"^`length` is the number of tokens of a text; leave it out with the data"):
        jaxleak.load_dataset("photos", length=8)


def test_files_that_are_no_text_are_refused(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "own.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as UTF-8 text"):
        jaxleak.load_dataset(tmp_path / "own.txt")
    with pytest.raises(InputError, match="does not exist"):
        jaxleak.load_dataset("none.txt")
