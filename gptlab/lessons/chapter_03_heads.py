"""Chapter 3: one head of attention and four, and where each of them looks.

`python -m gptlab.lessons.chapter_03_heads` shows it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gptlab.lessons.lesson import OUTPUTS, Choice, Exercise, Expected, Lesson, Value
from gptlab.lessons.maps import label_cells
from gptlab.lessons.outputs import finished, of_summary
from gptlab.system.errors import command_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE, FOUR = "one", "four"  # the runs' folders
TEXT = "the king"  # what the heads are seen reading: as many characters as a block has
WINDOWS = 256  # pieces of the validation part over which is averaged


def head_maps(run_dir: Path, text: str = TEXT) -> np.ndarray:
    """Return where each head of a trained model looks, (H, T, T): each row sums to 1."""
    from gptlab.formats.open_model import open_model
    from gptlab.models.watching import attention_maps

    finished(run_dir)
    opened: Any = open_model(str(run_dir))
    import torch

    ids = torch.tensor(opened.tokenizer.encode(text))
    return attention_maps(opened.model, ids)[0].numpy()


def shares_by_distance(run_dir: Path) -> np.ndarray:
    """Return how much each head looks how far back, (H, T): the mean weight that the last position of a piece gives.

    Column 0 is the position itself, column 1 the one before, and so on; the mean is over pieces of the validation part.
    """
    import torch

    from gptlab.formats.open_model import open_model
    from gptlab.lessons.text import shakespeare
    from gptlab.models.watching import watch_blocks

    finished(run_dir)
    model: Any = open_model(str(run_dir)).model
    T = model.config.block_size
    ids = torch.from_numpy(shakespeare()[2][: WINDOWS * T].reshape(WINDOWS, T))
    seen: list[torch.Tensor] = []
    with torch.inference_mode(), watch_blocks(model, see_attention=lambda i, weights: seen.append(weights)):
        model.features(ids)
    return seen[0][:, :, -1].mean(0).flip(-1).numpy()  # (B, H, T, T) -> (H, T)


def draw(folder: Path) -> Figure:
    """Draw where each head looks in a text."""
    from matplotlib.figure import Figure

    maps = [*head_maps(folder / ONE), *head_maps(folder / FOUR)]
    titles = ["one head of 32", *(f"head {number} of four" for number in range(1, len(maps)))]
    labels = [character.replace(" ", "␣") for character in TEXT]
    figure = Figure(figsize=(9, 2.5), layout="constrained")
    for axes, title, weights in zip(figure.subplots(1, len(maps)), titles, maps, strict=True):
        image = axes.imshow(weights, vmin=0, vmax=1, cmap="Blues")
        axes.set_title(title, fontsize=8)
        label_cells(axes, labels, 8)
    figure.axes[0].set_ylabel("who looks")
    figure.axes[0].set_xlabel("at what")
    figure.colorbar(image, ax=figure.axes, label="weight", shrink=0.8)
    return figure


LESSON = Lesson(
    number=3,
    name="heads",
    title="Heads: one head of attention, and four",
    minutes=0.7,
    commands=(
        "python -m gptlab.train experiment=ladder_2_head hydra.run.dir=outputs/lessons/3/one",
        "python -m gptlab.train experiment=ladder_3_heads hydra.run.dir=outputs/lessons/3/four",
        "python -m gptlab.lessons.chapter_03_heads",
    ),
    expected=(
        Expected("one head of 32 columns", of_summary(ONE, "val/loss"), 2.37, 2.44),
        Expected("four heads of 8 columns", of_summary(FOUR, "val/loss"), 2.20, 2.35),
        Expected("parameters of either", of_summary(FOUR, "parameters"), 7553, 7553),
    ),
    draw=draw,
    exercises=(
        Exercise(
            "How many numbers has the matrix that makes the queries of one of the four heads?",
            Value(32 * 8, 0),
            "It reads a token's 32 columns, and makes the 8 of a query of them.",
            "32 x 8 = 256. Four heads have four of them, as many numbers as the 32 x 32 of the one head.",
        ),
        Exercise(
            "Train four heads' model with model.n_head=8. What is its val/loss?",
            Value(2.27, 0.11),
            "The page has the command; its last lines begin with the number.",
            "2.24 to 2.29 for five seeds, and 2.27 to 2.29 for four heads: these seeds show no "
            "difference. Chapter 10 asks when one is shown.",
        ),
        Exercise(
            "In the picture the first row of every head has a single dark square. Why?",
            Choice(
                {
                    "a": "the first character is the most important one",
                    "b": "the first character has nothing before it, so that all its weight is on itself",
                    "c": "the heads have not been trained long enough to look elsewhere",
                },
                "b",
            ),
            "Think of the mask: what may the first character see?",
            "Weights sum to 1, and the mask leaves the first position only itself.",
        ),
    ),
)


def main() -> None:
    """Print how far back each head looks."""
    with command_line():
        folder = OUTPUTS / str(LESSON.number)
        for run in (ONE, FOUR):
            print(f"{run}: weight of the last of 8 characters, by how far back it looks")
            for number, shares in enumerate(shares_by_distance(folder / run), 1):
                print(f"  head {number}: " + "  ".join(f"{back}: {share:.2f}" for back, share in enumerate(shares)))


if __name__ == "__main__":
    main()
