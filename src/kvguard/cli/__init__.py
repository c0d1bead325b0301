"""The ``kvguard`` shell commands: thin, and slow imports only once a command runs."""

import click

from kvguard.cli.compare import compare
from kvguard.cli.directed import directed
from kvguard.cli.instructions import instructions
from kvguard.cli.numbers import numbers
from kvguard.cli.recommend import recommend
from kvguard.cli.reference import reference
from kvguard.cli.run import run
from kvguard.cli.serve import serve
from kvguard.cli.summary import summary
from kvguard.cli.sweep import sweep
from kvguard.cli.trace import trace
from kvguard.cli.verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kvguard")
def main() -> None:
    """Measure, forecast and prevent catastrophic failures of LLMs under KV cache compression."""


_COMMANDS = (
    run,
    recommend,
    serve,
    sweep,
    verify,
    trace,
    summary,
    compare,
    instructions,
    directed,
    numbers,
    reference,
)
for command in _COMMANDS:
    main.add_command(command)
