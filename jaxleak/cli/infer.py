"""`jaxleak infer`: from its flags to a victim, and what it prints."""

from collections.abc import Callable

import numpy as np

from jaxleak.cli.commands import InferCommand
from jaxleak.cli.flags import build_client, model_fields, normalise, pictures
from jaxleak.errors import InputError, check_choice, check_positive, check_seed

OF_FILES = ("embedding", "vocabulary")  # flags that go with --update


def answer(command: InferCommand, say: Callable[[str], None]) -> None:
    """Run the command and print what came of it.

    Args:
        command: the flags.
        say: is given lines of progress.

    Raises:
        InputError, StorageError: as `infer`.
    """
    from jaxleak.data.paths import reachable
    from jaxleak.results.store.description import make_directory
    from jaxleak.runs.infer.infer import WHAT, infer
    from jaxleak.runs.infer.own_words import infer_own_words
    from jaxleak.runs.infer.properties import PROPERTIES
    from jaxleak.runs.infer.questions import OTHERS

    path = reachable(command.out)
    if path.exists():
        make_directory(path)
    check_choice("what", command.what, WHAT)
    check_choice("property", command.property, PROPERTIES)
    check_choice("others", command.others, OTHERS)
    for name in ("updates", "own_updates", "num_images"):
        if getattr(command, name) is not None:
            check_positive(name, getattr(command, name), integer=True)
    check_seed("seed", command.seed)
    if command.update is not None:
        if command.what != "words":
            raise InputError(
                f"`update` is a file of your own, of which --what words is read; got {command.what}, which needs "
                "--dataset. Leave --update out."
            )
        found = infer_own_words(command.update, command.out, command.embedding, command.vocabulary)
    else:
        for name in OF_FILES:
            if getattr(command, name) is not None:
                raise InputError(f"`{name}` goes with --update; add that, or leave it out.")
        victim, data = infer_victim(command)
        found = infer(
            victim,
            command.what,
            data,
            property=command.property,
            others=command.others,
            updates=command.updates,
            own_updates=command.own_updates,
            seed=command.seed,
            out=command.out,
            say=say,
        )
    print(found)
    names = ("rows.jsonl", "summary.json", "roc.png")
    print(f"{command.out}: {', '.join(name for name in names if (command.out / name).exists())}")


def infer_victim(command: InferCommand):
    """The victim whose images are the client's, and the data set that the attacker has the rest of.

    Raises:
        InputError: too few images, or what `make_victim` refuses.
    """
    from jaxleak.runs.infer.classifier import check_installed
    from jaxleak.runs.infer.infer import UPDATES
    from jaxleak.threat.defences import parse_defence
    from jaxleak.threat.from_dataset import make_victim

    if command.what != "words":
        check_installed()
    client, defences = build_client(command), tuple(parse_defence(text) for text in command.defence)
    data = pictures(command)
    batch, updates = command.batch, command.updates or UPDATES[command.what]
    most = len(data) if command.what == "words" else len(data) // 2
    count = command.num_images or min(batch * updates, most)
    count -= count % batch
    if count == 0:
        raise InputError(
            f"`batch` must be at most the client's {command.num_images or most} images; got {batch}. Use a smaller "
            "--batch, or more --num-images."
        )
    victim = make_victim(
        command.model,
        data,
        [int(index) for index in np.asarray(data.random_indices(count, command.seed))],
        fields=model_fields(command.model_field),
        network="shared",
        network_seed=command.network_seed,
        weights=command.weights,
        normalise=normalise(command),
        batch=batch,
        client=client,
        defences=defences,
        trained_steps=command.trained_steps,
        train_optimizer=command.train_optimizer,
        train_lr=command.train_lr,
    )
    return victim, data
