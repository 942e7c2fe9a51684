"""The page of an audit or of a risk: one self-contained file that can be handed on and printed."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jaxleak.data.paths import write_atomically
from jaxleak.results.page.words import threat_model
from jaxleak.runs.audit.determinacy import HIDDEN, psnr

# For somebody who has never heard of gradients: the word, what it means, and its colour.
VERDICT_WORDS = {
    "recovered": ("Recovered", "Whoever sees this update can rebuild the private data from it.", "bad"),
    "ambiguous": ("Partly recovered", "The update shows something of the private data, but not all of it.", "open"),
    "unfinished": ("Not finished", "The attack ended too early. Nothing can be said until it runs longer.", "open"),
    "unexplained": (
        "Not explained",
        "No data was found that would have given this update. That is no proof of safety: something that was assumed "
        "about the client may be wrong.",
        "open",
    ),
}
OPEN = 0.1  # share of the numbers of a picture that are left open: with more a guess need not be right
PICTURES = {
    "best.png": "What the attack found (first the truth, where it was given; then the best start, then others)",
    "determined.png": "Where the picture is least certain (bright), and how noise would blur it",
    "risk.png": "The picture, where an attacker is least sure of it, and what defences do",
}


@dataclass(frozen=True)
class Table:
    """A table of the page; cells are text."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """What stands on the page, in the order of its fields.

    Attributes:
        title, subject: what was looked at.
        word, meaning, tone: the first thing a reader sees; `tone` is bad, good or open.
        because: sentences under it.
        tables, lists: the rest; a list is its title and its texts.
        command: that made it.
        made: versions, device and date.
    """

    title: str
    subject: str
    word: str
    meaning: str
    tone: str
    because: Sequence[str]
    tables: Sequence[Table]
    command: str
    made: str
    lists: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        """Write it beside its pictures, which it holds."""
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from markupsafe import Markup

        environment = Environment(
            loader=PackageLoader("jaxleak.runs.audit", "."),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        pictures = [
            {"alt": alt, "data": base64.b64encode((path.parent / name).read_bytes()).decode()}
            for name, alt in PICTURES.items()
            if (path.parent / name).exists() and (name == "risk.png") == (path.name == "risk.html")
        ]
        style = Markup((files("jaxleak.runs.audit") / "page.css").read_text(encoding="utf-8"))
        content = {**vars(self), "tables": [table for table in self.tables if table.rows]}
        content["lists"] = [{"title": title, "texts": texts} for title, texts in self.lists.items() if texts]
        text = environment.get_template("page.html").render(**content, pictures=pictures, style=style)
        write_atomically(path, text.encode(errors="replace"))
        return path


def made_by(environment: Mapping[str, Any]) -> str:
    """Versions, device and date in a sentence."""
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    date = datetime.now(UTC).date().isoformat()
    device = environment["device"]
    return f"jaxleak {environment['jaxleak_version']}, Python {environment['python']}, {versions}; on {device}; {date}."


def decibels(psnr: float, filled: float) -> str:
    """PSNR of attackers who know nothing of pictures, and of those who do, where they differ."""
    return f"{psnr:.0f} dB" if f"{psnr:.0f}" == f"{filled:.0f}" else f"{psnr:.0f} to {filled:.0f} dB"


def defence_rows(lines: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What each defence leaves to the best attacker who knows it, the strongest last."""
    return [
        [line["defence"], decibels(line["psnr"], line["filled"]), "hidden" if line["hidden"] else "visible"]
        for line in sorted(lines, key=lambda line: (-line["filled"], line["error"]))
    ]


def audit_page(report: Mapping[str, Any], victim: Any, sweep: Any, environment: Mapping[str, Any]) -> Page:
    """The page of `report.json`.

    Args:
        report: its content; `prevented` holds `Risk.lines` of the images found, if they were computed.
        victim: of it sizes and what is assumed of the client.
        sweep: its attacks and seeds.
        environment: of the run.
    """
    word, meaning, tone = VERDICT_WORDS[report["verdict"]]
    determined, floor = report["determined"], report["floor"]["value"]
    because = [text[:1].upper() + text[1:] + "." for text in report["reasons"]]
    if report["truth"] is not None:
        same = "the same picture" if report["truth"]["right"] else "another picture"
        because.append(f"Compared with the truth that was given, it is {same}; the verdict did not use it.")
    rests = [
        [
            line["attack"],
            f"{line['restarts']} of {line['asked']}",
            str(line["explain"]),
            str(line["agree"]),
            "–" if line["left"] is None else f"{line['left']:.1e}",
            "–" if line["labels"] is None else " ".join(map(str, line["labels"])),
        ]
        for line in report["attacks"]
    ]
    notes = [
        f"Explain: restarts after which less than {floor:.1g} of the update, squared, is left. That is what a right "
        "answer leaves, by the file's number type, the arithmetic and the stated defences.",
        "Agree: those of them that show the best one's picture. Independent starts that agree are the evidence.",
    ]
    if determined is not None:
        hiding = determined["hiding_noise"]
        noise = "no noise would hide it" if hiding is None else f"noise of {hiding:.2g} on every entry would hide it"
        notes.append(f"By the update alone the picture is determined to {determined['psnr']:.0f} dB; {noise} (20 dB).")
    prevented = Table(
        "What would have prevented it, the weakest first",
        ("defence", "best picture to expect", "the picture is"),
        defence_rows(report.get("prevented") or []),
        (
            "By the Fisher information, for an attacker who knows the defence; none is the update as it is.",
            f"Hidden: below {psnr(HIDDEN):.0f} dB. The weaker a defence, the less it costs the training.",
        ),
    )
    size = "x".join(map(str, victim.shape))
    images = "one picture" if victim.batch == 1 else f"{victim.batch} pictures"
    subject = f"An update of {victim.model_name} from {images} of {size}, {victim.num_classes} classes."
    return Page(
        "Audit of an update",
        subject,
        word,
        meaning,
        tone,
        because,
        [
            Table("What it rests on", ("attack", "restarts", "explain", "agree", "left", "labels"), rests, notes),
            prevented,
        ],
        environment["command"],
        f"{made_by(environment)} The numbers above are in report.json beside this page; a start is a row: "
        "jaxleak table RUN of this directory, or jaxleak.Run.open(RUN).frame() in Python.",
        {
            "Hints": [f"{hint['code']}: {hint['text']}" for hint in report["hints"]],
            "What was assumed, and what was not tried": _not_tried(report, sweep),
        },
    )


def _not_tried(report: Mapping[str, Any], sweep: Any) -> list[str]:
    from jaxleak.attacks.presets import ATTACKS, BEST

    run = [attack.name for attack in sweep.attacks]
    texts = [
        *(f"{head}: {text}" for head, text in threat_model(sweep.settings()) if head.startswith("The ")),
        f"Attacks that were run: {', '.join(run)}, {sweep.seeds} starts each. "
        f"Not run: {', '.join(name for name in ATTACKS if name not in run and name != BEST.name)}.",
    ]
    tried = [entry["assumption"] for entry in report["tried"] if entry["left"] is not None]
    skipped = [entry["assumption"] for entry in report["tried"] if entry["left"] is None]
    if tried:
        texts.append(f"Other assumptions that were tried: {', '.join(tried)}.")
    if skipped:
        texts.append(f"Assumptions for which there was no time, or that could not be tried: {', '.join(skipped)}.")
    texts.append(
        "Not tried: what an attacker knows from elsewhere, such as other updates or pictures of the same kind."
    )
    return texts


def _rank_row(layer: Mapping[str, Any]) -> list[str]:
    rank = "–" if layer["rank"] is None else f"{layer['rank']:,}"
    exact = "–" if layer["rank"] is None else "yes" if layer["exact"] else "no"
    equations = f"{layer['gradient']:,} + {layer['outputs']:,}"
    return [layer["layer"], f"{layer['unknowns']:,}", equations, rank, exact]


def _left_free(update: Mapping[str, Any]) -> tuple[list[str], bool]:
    """What is said of the directions that an update leaves free, and whether a guess of so many need not be right."""
    free, pixels = update["free_directions"], update["pixels"]
    said = [f"{free:,} of {pixels:,} numbers of the picture are left open and must be guessed."] if free else []
    if not update["exact"]:
        said.append(
            "So many pixels are looked at by samples: more may be left open, and figures are the most to expect."
        )
    return said, free > OPEN * pixels


def risk_page(content: Mapping[str, Any], victim: Any, environment: Mapping[str, Any]) -> Page:
    """The page of `risk.json`."""
    updates = content["updates"]
    first = updates[0]
    visible = not first["defences"][0]["hidden"]
    rows = [line for update in updates[:1] for line in defence_rows(update["defences"])]
    hiding = first["hiding_noise"]
    noise = "No noise hides it." if hiding is None else f"Noise of {hiding:.2g} on every entry would hide it (20 dB)."
    others = [
        [
            str(number),
            decibels(update["psnr"], update["psnr_filled"]),
            "–" if update["hiding_noise"] is None else f"{update['hiding_noise']:.2g}",
        ]
        for number, update in enumerate(updates)
    ]
    count = "An update" if len(updates) == 1 else f"{len(updates)} updates"
    images = "one picture" if victim.batch == 1 else f"{victim.batch} pictures"
    free, unsure = _left_free(first)
    return Page(
        "What an update tells",
        f"{count} of {victim.model_name} from {images}. No attack was run.",
        f"It {'may show' if unsure else 'shows'} the picture" if visible else "It hides the picture",
        f"The best attacker can expect {decibels(first['psnr'], first['psnr_filled'])} from the update as it is.",
        ("open" if unsure else "bad") if visible else "good",
        [noise, *free],
        [
            Table(
                "What defences leave",
                ("defence", "best picture to expect", "the picture is"),
                rows,
                (f"For an attacker who knows the defence. Hidden: below {psnr(HIDDEN):.0f} dB.",),
            ),
            Table(
                "Layer by layer",
                ("layer", "numbers of its input", "equations", "rank", "one solution"),
                [_rank_row(layer) for layer in first["layers"]],
                (
                    "Linear equations from the gradient and from known outputs, as the attack rgap solves them; "
                    "equations are those of weights and of outputs.",
                ),
            ),
            Table("Each update", ("update", "as it is", "noise that hides it"), others if len(updates) > 1 else []),
        ],
        environment["command"],
        f"{made_by(environment)} The numbers above are in risk.json beside this page.",
        {
            "How to read it": [
                "Computed from the Fisher information of the update at these pictures: the least error of an unbiased "
                "attacker. Of two numbers the larger is that of one who knows what pictures look like: what the update "
                "leaves free is right. Hidden is what is hidden from that one too.",
                "An update of other pictures, other weights or another batch tells something else.",
            ]
        },
    )
