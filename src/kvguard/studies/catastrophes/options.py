"""The option that pipeline stages of one protocol take."""

import click

from kvguard.studies.catastrophes.protocols import HEADLINE, PROTOCOLS

protocol_option = click.option(
    "--protocol",
    type=click.Choice(list(PROTOCOLS)),
    default=HEADLINE,
    show_default=True,
    help="How it is trained and judged.",
)
