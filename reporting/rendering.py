"""Pages from the templates in templates/."""

from pathlib import Path

from files.errors import optional_package

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
