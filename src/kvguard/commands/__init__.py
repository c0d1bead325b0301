"""The ``kvguard`` shell commands: thin, and slow imports only once a command runs."""

import click

from kvguard.commands.compare import compare
from kvguard.commands.reference import reference
from kvguard.commands.run import run
from kvguard.commands.summary import summary
from kvguard.commands.sweep import sweep
from kvguard.commands.trace import trace
from kvguard.commands.verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kvguard")
def main() -> None:
    """Measure, forecast and prevent catastrophic failures of LLMs under KV cache compression."""


for command in (run, sweep, verify, trace, summary, compare, reference):
    main.add_command(command)
