"""The page that explains one pair of image and sentence: one HTML file that needs nothing else."""

import base64
import io

import numpy as np

from reporting.rendering import TEMPLATES, template


def page(title, explanation, sentence, view):
    """One HTML file as text: data, style, script and picture within."""
    form = template("explain.html")
    style, more, script = (
        (TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "explain.css", "explain.js")
    )
    return form.render(
        title=title, view=view, data=page_data(explanation, sentence, view),
        style=style + more, script=script,
        explanation=explanation, visual=float(explanation.regions.sum()), textual=float(explanation.words.sum()),
    )  # fmt: skip


def page_data(explanation, sentence, view):
    """What the page's script draws."""
    numbers = {name: value for name, value in explanation._asdict().items() if isinstance(value, np.ndarray)}
    return {
        "tokens": sentence.words,
        "picture": picture_address(view.picture),
        "size": [int(x) for x in view.size],
        "boxes": np.round(view.boxes, 4).tolist(),
        "score": explanation.score,
        "pairs": explanation.pairs,
        **{name: np.round(value.astype(float), 6).tolist() for name, value in numbers.items()},
    }


def picture_address(picture):
    """A PIL image as a data: address, or None."""
    if picture is None:
        return None
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
