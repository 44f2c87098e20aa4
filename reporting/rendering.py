"""Pages from the templates in templates/, and the pictures inside a page."""

import base64
import io
from pathlib import Path

from files.errors import InputError, optional_package

PAGE_BYTES = 500_000  # the largest page of those that hold their pictures themselves
TEMPLATES = Path(__file__).parent / "templates"


def template(name):
    """One of templates/, to be rendered; a value that is not given is an error."""
    jinja2 = optional_package("jinja2", "a page")
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template(name)


def text_of_template(name):
    """A stylesheet or script of templates/, as text."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def fitted_page(render, sizes, what):
    """The first of render(size), for the sizes in turn, that takes at most PAGE_BYTES in UTF-8 -> its text.

    what: the page, for the InputError that is raised where none fits.
    """
    for size in sizes:
        text = render(size)
        if len(text.encode()) <= PAGE_BYTES:
            return text
    raise InputError(f"{what} would take more than {PAGE_BYTES // 1000} kB; show less")


def picture_address(picture, side):
    """A PIL image, made smaller where it is larger than `side`, as a data: address; None without one."""
    if picture is None or not side:
        return None
    buffer, small = io.BytesIO(), picture.copy()
    small.thumbnail((side, side))
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
