"""The pictures beside the page, as PNG."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from gptlab.explaining.explanation import Explanation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: Any = {"font.size": 8.0, "text.parse_math": False, "savefig.dpi": 120.0, "axes.titlesize": 9.0}
COLOURS = "Blues"
MODEL, COUNTS = "#0072B2", "#D55E00"  # Okabe and Ito's, as in reports
MOST_COLUMNS = 48  # of the lens: tokens whose text can be read
MOST_MAPS = 400  # heads in the picture of attention
MOST_NUMBERS = 16  # layers or heads whose scores are written into their cells
LETTERS = 8  # of a token in a label

Draw = Callable[["Figure", Explanation], None]


def pictures(explanation: Explanation) -> dict[str, Draw]:
    """Return what draws each picture that there can be, by the name of its file."""
    content = explanation.content
    drawn: dict[str, tuple[str, Draw]] = {
        "surprisal.png": ("totals", draw_surprisal),
        "lens.png": ("lens", draw_lens),
        "attention.png": ("attention", draw_attention),
        "heads.png": ("heads", draw_heads),
        "embeddings.png": ("neighbours", draw_embeddings),
    }
    return {name: draw for name, (section, draw) in drawn.items() if "missing" not in content[section]}


def save_picture(draw: Draw, explanation: Explanation, file: BinaryIO) -> None:
    """Draw a picture into a file."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), without_glyph_warnings():
        figure = Figure(layout="constrained")
        draw(figure, explanation)
        figure.savefig(file, format="png")


@contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """Let characters that the font lacks be boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively")
        yield


def label(text: str) -> str:
    """Return a token's text with its white space made visible, and shortened."""
    shown = text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
    shown = "".join(c if c.isprintable() else "\ufffd" for c in shown)
    return shown if len(shown) <= LETTERS else f"{shown[: LETTERS - 1]}…"


def draw_surprisal(figure: Figure, explanation: Explanation) -> None:
    """Draw the bits of each token, and those of the table of counts."""
    content = explanation.content
    tokens, counts = content["tokens"], content["counts"]
    figure.set_size_inches(float(np.clip(0.16 * len(tokens), 5, 22)), 2.8)
    axes = figure.subplots()
    bits = np.array([np.nan if token["bits"] is None else token["bits"] for token in tokens])
    places = np.arange(len(tokens))
    axes.bar(places, bits, 0.85, color=MODEL, label="the model")
    if "missing" not in counts:
        beside = np.array([np.nan if each is None else each for each in counts["bits"]])
        axes.plot(places, beside, "_", color=COUNTS, ms=6, mew=1.5, label=f"ngram:{counts['order']}")
    if len(tokens) <= 2 * MOST_COLUMNS:
        label_tokens(axes, places, [token["text"] for token in tokens])
    axes.set(ylabel="surprisal, bits", xlim=(-0.6, len(tokens) - 0.4))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)


def inside(is_dark: bool) -> dict[str, Any]:
    """Return how a text in the middle of a cell is set."""
    return {"ha": "center", "va": "center", "color": "white" if is_dark else "black"}


def label_tokens(axes: Axes, places: Any, texts: list[str]) -> None:
    """Write tokens below an axis."""
    axes.set_xticks(places, [label(text) for text in texts], rotation=90, family="monospace")


def draw_lens(figure: Figure, explanation: Explanation) -> None:
    """Draw what each layer would predict, in the colour of its probability, over the last tokens."""
    content = explanation.content
    lens, tokens = content["lens"], content["tokens"]
    first = max(lens["first"], len(tokens) - MOST_COLUMNS)
    probabilities = np.array(lens["probabilities"])[:, first - lens["first"] :, 0]  # (R, columns)
    ids = np.array(lens["ids"])[:, first - lens["first"] :, 0]
    texts = [[label(lens["texts"][str(token)]) for token in row] for row in ids]
    longest = max(len(text) for row in texts for text in row)
    figure.set_size_inches(2 + (0.2 + 0.05 * longest) * ids.shape[1], 1.4 + 0.28 * len(ids))
    axes = figure.subplots()
    image = axes.imshow(probabilities, cmap=COLOURS, vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(probabilities):
        axes.text(column, row, texts[row][column], size=6, **inside(share > 0.6))
    axes.set_yticks(range(len(ids)), lens["rows"])
    label_tokens(axes, range(ids.shape[1]), [token["text"] for token in tokens[first:]])
    axes.set(xlabel="after this token", title="the likeliest next token by layer")
    figure.colorbar(image, label="its probability", fraction=0.03, pad=0.01)


def draw_attention(figure: Figure, explanation: Explanation) -> None:
    """Draw the map of each head: a row of maps for each layer."""
    assert explanation.maps is not None
    levels = explanation.maps.levels  # (L, H, W, W)
    rows = min(len(levels), max(MOST_MAPS // levels.shape[1], 1))
    levels = levels[len(levels) - rows :][:, :MOST_MAPS]  # the last layers
    columns = levels.shape[1]
    size = float(np.clip(14 / max(rows, columns), 0.6, 1.8))
    figure.set_size_inches(size * columns + 0.6, size * rows + 0.7)
    total = len(explanation.maps.levels)
    for i, row in enumerate(figure.subplots(rows, columns, squeeze=False)):
        for j, axes in enumerate(row):
            axes.imshow(levels[i, j], cmap=COLOURS, vmin=0, vmax=255)
            axes.set(xticks=(), yticks=())
            if not i:
                axes.set_title(f"head {j + 1}")
            if not j:
                axes.set_ylabel(f"layer {total - rows + i + 1}")
    figure.supxlabel("looked at; the darker, the more (the square root of the weight)", size=8)


def draw_heads(figure: Figure, explanation: Explanation) -> None:
    """Draw the scores of the heads, a panel for each kind."""
    from matplotlib.colors import PowerNorm

    heads = explanation.content["heads"]
    names = {"previous": "previous token", "induction": "induction", "first": "first token"}
    layers, count = np.array(heads["previous"]).shape
    figure.set_size_inches(0.9 + 3 * max(0.3 * count, 1.8), 1.1 + max(0.24 * layers, 1.0))
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, (name, words) in zip(panels, names.items(), strict=True):
        image = axes.imshow(heads[name], cmap=COLOURS, norm=PowerNorm(0.5, 0, 1), aspect="auto")
        axes.set(title=words, xlabel="head", ylabel="layer")
        for (layer, head), score in np.ndenumerate(heads[name]):
            if max(layers, count) <= MOST_NUMBERS:
                axes.text(head, layer, f"{score:.2f}".lstrip("0"), size=6, **inside(score > 0.4))
        for axis, size in ((axes.xaxis, count), (axes.yaxis, layers)):
            step = -(-size // 12)
            axis.set_ticks(range(0, size, step), [str(i + 1) for i in range(0, size, step)])
    figure.colorbar(image, ax=panels, label="mean attention", fraction=0.05, pad=0.01)


def draw_embeddings(figure: Figure, explanation: Explanation) -> None:
    """Draw the tokens of the text and their neighbours on two principal components."""
    neighbours = explanation.content["neighbours"]
    figure.set_size_inches(6.5, 5.5)
    axes = figure.subplots()
    points = neighbours["points"]
    axes.scatter([point["x"] for point in points], [point["y"] for point in points], s=0)
    for point in points:
        colour = MODEL if point["of_text"] else "#808080"
        axes.text(point["x"], point["y"], label(point["text"]), color=colour, ha="center", va="center", clip_on=True)
    shares = [f"component {i}, {share:.0%} of the variance" for i, share in enumerate(neighbours["variance"], 1)]
    axes.set(xlabel=shares[0], ylabel=shares[1] if len(shares) > 1 else "", title="embeddings: blue are the text's own")
    axes.grid(alpha=0.3)
