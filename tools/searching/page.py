"""The page of the images found for a sentence: one HTML file that loads nothing else."""

from reporting.image_view import warn_of_notes
from reporting.rendering import fitted_page, picture_address, template, text_of_template
from reporting.thumbnails import drawing

THUMBNAIL_SIDES = (320, 240, 160, 100, 0)  # pixels of the longer side that are tried; 0: no pictures


def search_page(text, finder, viewer, best, scores):
    """A sentence and the images found for it, best first -> HTML of a bounded size; viewer: an ImageViewer."""
    form, style = template("search.html"), text_of_template("report.css")
    views = [viewer(g) for g in best.tolist()]
    warn_of_notes(views)
    found = [
        {
            "place": place,
            "score": float(score),
            "number": view.number,
            "name": finder.names[view.number],
            "caption": finder.captions[view.number],
            "drawing": drawing(view.boxes, view.size),
            "note": view.note,
        }
        for place, (view, score) in enumerate(zip(views, scores), start=1)
    ]

    def render(side):
        pictures = [picture_address(view.picture, side) for view in views]
        shown = {"text": text, "found": found, "pictures": pictures, "count": len(finder.names)}
        return form.render(shown, style=style, provenance=finder.provenance)

    return fitted_page(render, THUMBNAIL_SIDES, f"the page of {len(found)} images")
