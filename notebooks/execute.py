"""Execute the notebooks in place: ``python notebooks/execute.py [NOTEBOOK ...]``.

What differs from one run to the next, or from one machine to another, stays out of the files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
PICTURES = [
    "--InlineBackend.figure_formats={'jpeg'}",  # tissue as PNG is several times as large
    "--InlineBackend.print_figure_kwargs={'bbox_inches': 'tight', 'pil_kwargs': {'quality': 88}}",
]


def execute(path: Path) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of its cells; an error of a cell raises."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        extra_arguments=PICTURES,
        timeout=300,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for output in cell.outputs:
                data = output.get("data", {})
                if "image/jpeg" in data:
                    data.pop("image/png", None)  # Pillow's pictures come as both
                if "application/vnd.holoviews_exec.v0+json" in data:  # a view, which needs Python
                    del data["application/vnd.holoviews_exec.v0+json"], data["text/html"]
                    output.metadata.clear()
            cell.outputs = [output for output in cell.outputs if not _is_left_out(output)]
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return notebook


def _is_left_out(output: nbformat.NotebookNode) -> bool:
    """Whether it is a cluster's log as it closes, which depends on the moment, or scripts only."""
    if output.get("name") == "stderr":
        return " - distributed." in output.text
    return output.output_type == "display_data" and "text/plain" not in output.data


def main() -> None:
    """Execute those that are named, or all."""
    for path in map(Path, sys.argv[1:] or sorted(FOLDER.glob("*.ipynb"))):
        print(path.name)
        nbformat.write(execute(path), path)


if __name__ == "__main__":
    main()
