"""The command line of the trainer: one command per module."""

from __future__ import annotations

import argparse
import importlib
import sys

from medchat.errors import UserError

RECIPE = {"check": "before any hour is spent: environment, data, masks, memory and time", "sft": "fine-tune an adapter"}
OTHER = {
    "evaluate": "measure base and adapter on the same rows",
    "push": "publish an evaluated adapter on the Hub",
    "merge": "write base and adapter as one model",
    "export": "write an adapter as GGUF, with an Ollama Modelfile",
    "feedback": "make training data of what visitors said, or delete it",
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(prog="python -m train", description="Fine-tune adapters for MedChat.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the recipes, one line each")
    for name, text in RECIPE.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("recipe", metavar="RECIPE", help="a name from `list`, or a path to a YAML file")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="replace a field: sft.max_steps=10")
    for name, text in OTHER.items():
        importlib.import_module(f"train.{name}").add_arguments(commands.add_parser(name, help=text))
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; return 0, 2 for what the user can mend, 130 after Ctrl-C."""
    arguments = parser().parse_args(argv)

    from train import recipe

    try:
        if arguments.command == "list":
            for name in recipe.names():
                print(f"{name:20} {recipe.load(name).description}")
            return 0
        command = importlib.import_module(f"train.{arguments.command}")
        if arguments.command in RECIPE:
            command.run(recipe.load(arguments.recipe, arguments.overrides))
        else:
            command.run(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
