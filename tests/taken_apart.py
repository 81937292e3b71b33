"""Pages and figures taken apart into what they say."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "br", "img", "hr", "input"}
Interval = tuple[float, float, float]  # y, from, to
Point = tuple[float, float]  # y, value


class Page(HTMLParser):
    """Elements in order, text, and the cells of each table by the table's caption; closing tags must match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = [[" ".join(cell.split()) for cell in row] for row in self._rows]

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            return
        self.text += data
        if "caption" in self._open:
            self._caption += data
        elif {"td", "th"} & set(self._open):
            self._rows[-1][-1] += data

    def table(self, name: str) -> list[list[str]]:
        """The rows of the only table whose caption has this in it, the heading first."""
        (rows,) = (rows for caption, rows in self.tables.items() if name in caption)
        return rows

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def drawn(axes: Any) -> tuple[list[Interval], list[Point]]:
    """The intervals and markers of a panel; later ones lie above earlier ones."""
    segments = [segment for lines in axes.collections for segment in lines.get_segments()]
    points = [line for line in axes.lines if line.get_marker() not in ("None", None)]
    return (
        [(float(a[1]), float(a[0]), float(b[0])) for a, b in segments],
        [(float(y), float(x)) for line in points for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)],
    )


def labels(axes: Any) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]
