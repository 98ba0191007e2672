"""The command line of the trainer: one command per module."""

from __future__ import annotations

import argparse
import sys

from medchat.errors import UserError


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(prog="python -m train", description="Fine-tune adapters for MedChat.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the recipes, one line each")
    sft = commands.add_parser("sft", help="fine-tune an adapter")
    sft.add_argument("recipe", metavar="RECIPE", help="a name from `list`, or a path to a YAML file")
    sft.add_argument("overrides", nargs="*", metavar="key=value", help="replace a field, as in sft.max_steps=10")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; return 0, 2 for what the user can mend, 130 after Ctrl-C."""
    arguments = parser().parse_args(argv)

    from train import recipe

    try:
        if arguments.command == "list":
            for name in recipe.names():
                print(f"{name:20} {recipe.load(name).description}")
        else:
            from train import sft as command

            command.run(recipe.load(arguments.recipe, arguments.overrides))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
