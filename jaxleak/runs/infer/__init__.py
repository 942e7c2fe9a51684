"""What an update tells of its batch without rebuilding it: README.md in this folder.

- `infer.py`: `infer`: draw batches, share their updates, attack each, keep its row.
- `questions.py`: words, membership, property: what is asked, of which batches, and the attacks.
- `properties.py`: properties of images that labels do not tell.
- `classifier.py`: classifiers of scikit-learn, trained on updates of the attacker's own batches.
- `updates.py`: batches out of a pool, and their updates in one compiled program.
- `own_words.py`: the words of an update of one's own, from its file.
- `rows.py`: the folder of rows, resumable. `summary.py`: rates and areas with intervals, in words.
"""
