"""One self-contained HTML page about a fit: opens anywhere, without a network.

Pictures are inside the page as base64, styles are inline, there is no script, and a content
security policy forbids the page to load anything. All text is escaped: what a language model
wrote is data.
"""

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pandas as pd

from bayesmeta import heldout as heldout_module
from bayesmeta.metrics import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str
    kind: ClassVar[str] = "text"


@dataclasses.dataclass(frozen=True, slots=True)
class Notice:
    """A paragraph that stands out; ``good=False`` for a warning."""

    text: str
    good: bool = True
    kind: ClassVar[str] = "notice"


@dataclasses.dataclass(frozen=True, slots=True)
class Code:
    """Commands or other text that keeps its line breaks."""

    text: str
    kind: ClassVar[str] = "code"


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, already text; rows whose first cell is in ``strong`` are emphasised."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    strong: Sequence[str] = ()
    kind: ClassVar[str] = "table"

    @classmethod
    def of(cls, frame: pd.DataFrame, caption: str = "", strong: Sequence[str] = ()) -> "Table":
        """From a data frame whose index is the first column; numbers to four digits."""
        rows = [
            [str(label), *(_cell(value) for value in values)]
            for label, values in zip(frame.index, frame.itertuples(index=False), strict=True)
        ]
        headings = ["" if frame.index.name is None else str(frame.index.name)]
        return cls([*headings, *map(str, frame.columns)], rows, caption, strong)

    @property
    def headed(self) -> bool:
        return any(self.headings)

    def is_text(self, column: int) -> bool:
        """Whether a column holds words, which are set from the left."""
        return any(row[column] and not _is_number(row[column]) for row in self.rows)


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """A picture inside the page.

    Attributes:
      content: the bytes of a PNG file or of an SVG document.
      alt: what it shows, for readers who cannot see it.
      caption: printed below.
      width: in CSS pixels; 0 leaves it as it is.
    """

    content: bytes
    alt: str
    caption: str = ""
    width: int = 0
    kind: ClassVar[str] = "picture"

    @classmethod
    def of(
        cls,
        figure: "Figure",
        alt: str,
        caption: str = "",
        *,
        form: Literal["svg", "png"] = "svg",
        dpi: int = 150,
    ) -> "Picture":
        """From a matplotlib figure. Prefer ``"png"`` for thousands of points."""
        from matplotlib import rc_context

        buffer = io.BytesIO()
        with rc_context({"svg.fonttype": "path", "svg.hashsalt": "bayesmeta"}):
            if form == "svg":
                figure.savefig(buffer, format="svg", metadata={"Date": None})
            else:
                figure.savefig(buffer, format="png", dpi=dpi)
        return cls(buffer.getvalue(), alt, caption, width=round(figure.get_figwidth() * 80))

    @property
    def data_uri(self) -> str:
        is_png = self.content.startswith(b"\x89PNG\r\n\x1a\n")
        mime = "image/png" if is_png else "image/svg+xml"
        return f"data:{mime};base64,{base64.b64encode(self.content).decode()}"


Block = Text | Notice | Code | Table | Picture


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """A heading with blocks below it."""

    title: str
    blocks: Sequence[Block]


def write_report(
    path: str | Path,
    sections: Sequence[Section],
    title: str = "Posterior over strategies",
    subtitle: str = "",
) -> Path:
    """Write the page, replacing an older one only when it is complete.

    Raises:
      OSError: the page could not be written, for instance because the disk is full.
    """
    from bayesmeta.atomic import atomic_write

    page = render_report(sections, title, subtitle)

    def write(target: Path) -> None:
        target.write_text(page, encoding="utf-8")

    return atomic_write(path, write)


def render_report(
    sections: Sequence[Section], title: str = "Posterior over strategies", subtitle: str = ""
) -> str:
    """The page as HTML text."""
    import jinja2

    template = resources.files("bayesmeta").joinpath("data/report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template).render(
        title=title, subtitle=subtitle, sections=sections
    )
    # A model may write half a surrogate pair, which no file can hold.
    return page.encode("utf-8", "replace").decode("utf-8")


def standard_sections(
    *,
    provenance: Mapping[str, object],
    status: str,
    converged: bool,
    diagnostics: pd.DataFrame,
    heldout: pd.DataFrame,
    reproduce: str,
    gain: Estimate | None = None,
    pictures: Sequence[Picture] = (),
    diagnostic_pictures: Sequence[Picture] = (),
    model_graph: str = "",
) -> list[Section]:
    """The usual sections of a report.

    Args:
      provenance: what was run: model, evidence hash, prior, seeds, versions, wall time.
      status: the fit's own sentence about its convergence, with advice.
      converged: whether the fit may be used.
      diagnostics: one row per quantity, as from ``az.summary``.
      heldout: from `bayesmeta.heldout.heldout_table`.
      reproduce: commands that make this report again.
      gain: from `bayesmeta.heldout.skills_matter`.
      pictures: results; ``diagnostic_pictures``: traces, ranks, pairs.
      model_graph: SVG text from `bayesmeta.model_graph.model_graph_svg`.
    """
    held_out_blocks: list[Block] = []
    if not converged:
        held_out_blocks.append(
            Notice("The fit did not converge: do not use the rows of the posterior.", good=False)
        )
    held_out_blocks.append(
        Notice(heldout_module.explain(heldout), good=heldout_module.verdict(heldout) != "lost")
    )
    if gain is not None:
        held_out_blocks.append(
            Text(
                f"Skills matter by {gain.mean:.2f} ± {gain.standard_error:.2f} nats per task: "
                "that is how much better than the best single skill an oracle does, which always "
                "picks the right one. It bounds what choosing one skill per task could gain."
            )
        )
    held_out_blocks += [_heldout_block(heldout), _column_block()]
    sections = [
        Section(
            "What was run",
            [Table(["", ""], [[str(k), str(v)] for k, v in provenance.items()])],
        ),
        Section("Was the posterior worth having?", held_out_blocks),
        Section("What was learned", list(pictures)),
        Section(
            "Did the sampler converge?",
            [
                Notice(status, good=converged),
                Table.of(diagnostics, caption="The quantities that mixed worst."),
                *diagnostic_pictures,
            ],
        ),
    ]
    if model_graph:
        picture = Picture(
            model_graph.encode(),
            alt="Graph of the model: views I and E lead to strategy F, reasoning A, outcome O.",
            caption="The model (Yan et al., ICML 2025, Figure 2). Plates repeat what is in them.",
            width=620,
        )
        sections.append(Section("The model", [picture]))
    sections.append(Section("How to make this again", [Code(reproduce)]))
    return [section for section in sections if section.blocks]


def _heldout_block(table: pd.DataFrame) -> Table:
    frame = heldout_module.formatted(table)
    rows = [[str(cell) for cell in row] for row in frame.itertuples(index=False)]
    return Table(
        [str(c) for c in frame.columns],
        rows,
        caption="Every method on the same held-out tasks, best log score first. "
        "A bound reads the labels: it is no method.",
        strong=(heldout_module.POSTERIOR,),
    )


def _column_block() -> Table:
    rows = [[heading, note] for _, heading, _, note in heldout_module.COLUMNS]
    return Table(["column", "meaning"], rows)


def _cell(value: object) -> str:
    if isinstance(value, (bool, np.bool_)) or value is None:
        return str(value)
    if isinstance(value, (int, np.integer)):
        return str(value)
    if isinstance(value, (float, np.floating)):
        return f"{value:.4g}" if np.isfinite(value) else str(float(value))
    return str(value)


def _is_number(text: str) -> bool:
    try:
        float(text.replace("−", "-").replace("n/a", "nan"))
    except ValueError:
        return False
    return True
