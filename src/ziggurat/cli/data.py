"""``ziggurat data``: prepare a run's data, and look into it; a table of commands of its own."""

from ziggurat.cli.subcommands import Subcommand, dispatch

COMMANDS = {
    "prepare": Subcommand(
        "data_prepare",
        "tokenise all documents once, into a cache that training reads",
        "ziggurat data prepare recipes/tiny-python.toml",
    ),
    "stats": Subcommand(
        "data_stats",
        "count documents, tokens, duplicates, damage and padding",
        "ziggurat data stats recipes/tiny-python.toml --html data.html",
    ),
    "sample": Subcommand(
        "data_rows",
        "show rows of a batch as text, and what of it is learned",
        "ziggurat data sample runs/tiny-python --step 20 --rows 2",
    ),
    "decode": Subcommand(
        "data_rows",
        "show a row of a batch token by token, or what some ids mean",
        "ziggurat data decode runs/tiny-python --step 20 --row 1\n"
        "  ziggurat data decode runs/tiny-python --ids 15,2,7",
    ),
    "trace": Subcommand(
        "data_trace",
        "which documents a step saw, and which steps saw a document",
        "ziggurat data trace runs/tiny-python --step 20\n"
        "  ziggurat data trace runs/tiny-python --document json/decoder.py",
    ),
}
ABOUT = "Prepare the data of a run, and look into it. RUN is a run file or a run's directory."
NOTE = "After it, --help shows its options. Any key of [data] can be changed: --data.batch_size=8."


def main(args: list[str]) -> int:
    """Run one command of ``ziggurat data``."""
    return dispatch("data", COMMANDS, args, ABOUT, "RUN [OPTIONS]", NOTE)
