"""The command `rag`."""


def main() -> None:
    """Run the command line."""
    from rag.cli.app import main  # after this package: the commands of finetune import from it

    main()
