"""Numbers in README and docs, from the last run."""

import shutil
from pathlib import Path

import click

from kvguard import stage


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if a document disagrees with the run.")
@click.option("--rerun", "again", is_flag=True, help="First run the commands of docs/outputs again.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=".",
    show_default=True,
    help="The repository.",
)
@stage.one_line_errors
def numbers(check: bool, again: bool, root: Path) -> None:
    """Fill the numbers of README.md and docs/ from metrics/."""
    from kvguard.errors import KvguardError
    from kvguard.report.prose import Prose, documents, rerun
    from kvguard.store.files import write_text

    if again and not check:
        rerun(sorted((root / "docs" / "outputs").glob("*.txt")), root)
    prose = Prose(root)
    texts = {path: prose.fill(path) for path in documents(root)}
    stale = [path for path, text in texts.items() if text != path.read_text(encoding="utf-8")]
    drawn = {path: source for path, source in prose.pictures.items() if source.is_file()}
    stale += [
        path
        for path, source in drawn.items()
        if not path.is_file() or path.read_bytes() != source.read_bytes()
    ]
    if check:
        if stale:
            named = ", ".join(map(str, stale))
            raise KvguardError(f"{named}: disagrees with the last run: fill it with `kvguard numbers`")
        return
    for path in stale:
        if path in texts:
            write_text(path, texts[path])
        else:
            shutil.copyfile(drawn[path], path)
        click.echo(f"{path}: filled")
    for path in prose.pictures.keys() - drawn.keys():
        click.echo(f"{path}: left as it is, {prose.pictures[path]} does not exist")
