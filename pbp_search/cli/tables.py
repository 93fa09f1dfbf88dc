"""Tables on the terminal."""

from rich.console import Console
from rich.table import Table


def print_table(table: Table) -> None:
    """Print a table as wide as it needs to be: names and figures are never cut, also where there is no terminal."""
    console = Console()
    console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table)
