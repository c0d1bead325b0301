"""What IFEval calls loose: an answer without the lines and marks in which chat models wrap one."""


def variants(text: str) -> list[str]:
    """Return the text, and it without its first line, its last, both; each with and without asterisks."""
    lines = text.split("\n")
    cut = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(one.replace("*", "") for one in cut)]
