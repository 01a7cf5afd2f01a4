"""What is left of an ablation on disk: a table, pictures, and one page with both."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bayesmeta import ablation_plots
from bayesmeta.ablation_table import COLUMNS
from bayesmeta.atomic import atomic_write
from bayesmeta.report import Code, Notice, Picture, Section, Table, Text, write_report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bayesmeta.ablation import Ablation

#: File name -> caption.
CAPTIONS = {
    "elpd_differences": "Expected log predictive density minus the base's, with two standard "
    "errors. Hollow: the fit did not converge. Grey: less than two standard errors from zero.",
    "strategies": "Posterior strategy under each prior, in the domains where they disagree most.",
    "certainty": "How far the data narrowed each quantity, and how sensitive it is to the prior.",
}


def figures(result: "Ablation") -> "dict[str, Figure]":
    """The pictures by the names of `CAPTIONS`; strategies at the base's graph, seed, evidence."""
    first = next(iter(result.cells))
    same = {
        name.prior: cell
        for name, cell in result.cells.items()
        if name._replace(prior=first.prior) == first and np.isfinite(cell.strategy).all()
    }
    drawn = {
        "elpd_differences": ablation_plots.elpd_differences(result.table),
        "certainty": ablation_plots.certainty(result.table),
    }
    if same:
        facts = next(iter(same.values())).facts
        drawn["strategies"] = ablation_plots.strategies(
            {prior: cell.strategy for prior, cell in same.items()},
            facts["domains"],
            facts["skills"],
        )
    return {name: drawn[name] for name in CAPTIONS if name in drawn}


def write_ablation(
    folder: str | Path, result: "Ablation", *, reproduce: Sequence[str] = ()
) -> list[Path]:
    """Write ``table.csv``, the pictures as SVG, and ``ablation.html`` into a folder.

    Args:
      folder: must exist.
      result: from `bayesmeta.ablation.ablate`.
      reproduce: the commands that make it again.

    Returns:
      The files, in this order.
    """
    folder = Path(folder)
    written = [
        atomic_write(folder / "table.csv", lambda part: result.table.to_csv(part, index=False))
    ]
    pictures = {
        name: Picture.of(figure, alt=CAPTIONS[name], caption=CAPTIONS[name])
        for name, figure in figures(result).items()
    }
    for name, picture in pictures.items():
        written.append(_write_bytes(folder / f"{name}.svg", picture.content))
    page = write_report(
        folder / "ablation.html",
        _sections(result, pictures, reproduce),
        title="Ablation over priors",
        subtitle=f"{len(result.table)} fits; no language model was asked.",
    )
    return [*written, page]


def _sections(
    result: "Ablation", pictures: Mapping[str, Picture], reproduce: Sequence[str]
) -> list[Section]:
    table = result.table
    failed = table.loc[table["status"] != "converged"]
    notices = [
        Notice(f"{row['prior']}, {row['graph']}, seed {row['seed']}: {row['advice']}", good=False)
        for _, row in failed.iterrows()
    ]
    prior, graph = result.base
    identity = [
        c for c in ("prior", "graph", "seed", "evidence") if c == "prior" or _varies(c, table)
    ]
    shown = [c for c in COLUMNS if c in table and c not in ("graph", "seed", "evidence", "advice")]
    frame = table[[*identity, *(c for c in shown if c != "prior")]].set_index("prior")
    sections = [
        Section(
            "What depends on the prior?",
            [
                Text(
                    f"Differences are to prior {prior} with graph {graph}, at the same seed and "
                    "on the same tasks."
                ),
                *notices,
                *pictures.values(),
            ],
        ),
        Section(
            "Every cell",
            [
                Table.of(frame, strong=(prior,)),
                Table(["column", "meaning"], [[c, COLUMNS[c]] for c in COLUMNS]),
            ],
        ),
    ]
    if reproduce:
        sections.append(Section("How to make this again", [Code("\n".join(reproduce))]))
    return sections


def _varies(column: str, table) -> bool:
    return table[column].nunique() > 1


def _write_bytes(path: Path, content: bytes) -> Path:
    def write(part: Path) -> None:
        part.write_bytes(content)

    return atomic_write(path, write)
