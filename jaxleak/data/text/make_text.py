"""Makes this folder's `tokenizer.json` and `text.npz` from `text.txt` (see SOURCES.md).

pip install "jaxleak[text]" && python jaxleak/data/text/make_text.py
"""

import re
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
SIZE = 512
MASK = "[MASK]"
# A text may begin at a line, and behind these: at a sentence, or a part of one.
BREAKS = re.compile(r'[.,!?;:]["\')]* +|\n')


def train(text: str) -> Tokenizer:
    """Byte-pair encoding of words; "▁" stands for the space before a word."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    trainer = trainers.BpeTrainer(vocab_size=SIZE, special_tokens=[MASK, "[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(text.split("\n"), trainer)
    return tokenizer


def main() -> None:
    text = (HERE / "text.txt").read_text()
    tokenizer = train(text)
    tokenizer.save(str(HERE / "tokenizer.json"), pretty=False)
    tokens, starts = [], []
    for line in text.splitlines():
        begins = {0, *(found.end() for found in BREAKS.finditer(line))} - {len(line)}
        encoded = tokenizer.encode(line)
        for token, (begin, end) in zip(encoded.ids, encoded.offsets, strict=True):
            # The space before a word may be a token of its own, or a part of the word's.
            if begins & {begin, *([begin + 1] if line[begin:end].startswith(" ") else [])}:
                starts.append(len(tokens))
            tokens.append(token)
    kept = [start for place, start in enumerate(starts) if place == 0 or start > starts[place - 1] + 1]
    vocabulary = [tokenizer.id_to_token(token) for token in range(tokenizer.get_vocab_size())]
    np.savez_compressed(
        HERE / "text.npz",
        tokens=np.asarray(tokens, np.uint16),
        starts=np.asarray(kept, np.int32),
        vocabulary=np.asarray(vocabulary),
    )
    print(f"{len(vocabulary)} entries, {len(tokens)} tokens, {len(kept)} places where a text may begin")


if __name__ == "__main__":
    main()
