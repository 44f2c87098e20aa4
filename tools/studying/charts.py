"""Figures of a study as SVG: each seed a dot, the mean a line."""

from html import escape
from statistics import mean

LEFT, WIDE, LINE = 360, 400, 18  # of the labels, of the axis, of a row


def dot_charts(charts):
    """{title: {label: values}} -> one SVG, a chart below the other, each with an axis of its own."""
    parts, y = [], 0
    for title, rows in charts.items():
        rows = {label: values for label, values in rows.items() if values}
        if rows:
            parts.append(f'<g transform="translate(0 {y})">{dot_chart(title, rows)}</g>')
            y += LINE * (len(rows) + 3)
    size = f'width="{LEFT + WIDE + 40}" height="{y}" font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{"".join(parts)}\n</svg>\n'


def dot_chart(title, rows):
    low, high = (end(value for values in rows.values() for value in values) for end in (min, max))

    def x(value):
        return f"{LEFT + WIDE * (value - low) / ((high - low) or 1):.1f}"

    parts = [text(LEFT, LINE, title, 'font-weight="bold"')]
    for k, (label, values) in enumerate(rows.items()):
        y, middle = LINE * (k + 2), x(mean(values))
        parts.append(text(LEFT - 12, y + 4, label, 'text-anchor="end"'))
        parts.append(f'<path d="M{LEFT} {y}h{WIDE}" stroke="#ddd"/><path d="M{middle} {y - 7}v14" stroke="#222"/>')
        parts += [f'<circle cx="{x(value)}" cy="{y}" r="4" fill="#4477aa" fill-opacity=".6"/>' for value in values]
    ends = [text(x(value), LINE * (len(rows) + 2), f"{value:.1f}", 'text-anchor="middle"') for value in {low, high}]
    return "\n".join(parts + ends)


def text(x, y, content, look):
    return f'<text x="{x}" y="{y}" {look}>{escape(content)}</text>'
