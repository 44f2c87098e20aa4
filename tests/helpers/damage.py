"""Damaged files for fuzzing."""

from hypothesis import strategies as st


@st.composite
def damaged(draw, content):
    """Content with some bytes changed, cut out or put in, and sometimes cut short."""
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        at, length = draw(st.integers(0, len(content))), draw(st.integers(0, 4))
        content[at : at + length] = draw(st.binary(max_size=6))
    if draw(st.booleans()):
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)
