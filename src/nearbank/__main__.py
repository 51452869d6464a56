"""Entry point of the `nearbank` command."""

from nearbank.cli.app import run


def main() -> None:
    """Run the command line and leave the process with its exit status."""
    raise SystemExit(run())


if __name__ == "__main__":
    main()
