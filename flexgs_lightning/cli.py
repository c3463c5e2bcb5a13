"""The command line: ``flexgs``, also installed as ``lightning`` for those who type ``lightning fit``."""

import inspect
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser, auto_cli

from flexgs_lightning.data.download import download
from flexgs_lightning.demo import demo
from flexgs_lightning.deploy.export import export
from flexgs_lightning.deploy.render_command import render
from flexgs_lightning.deploy.view import view
from flexgs_lightning.errors import InputError
from flexgs_lightning.evaluation.benchmark_run import benchmark
from flexgs_lightning.evaluation.compare import ablate, compare
from flexgs_lightning.evaluation.unseen import unseen
from flexgs_lightning.lightning_cli import FlexGSCLI

HELP = """\
usage: flexgs COMMAND [options]        (flexgs COMMAND --help lists them)

training
  fit            train a scene:  flexgs fit --config configs/mipnerf360.yaml --data.root data/360/garden
  validate       measure a checkpoint on the held-out views
  test           the same, and write metrics.json into the run folder
deployment
  export         write a checkpoint as a standard 3DGS PLY, at any size: --ratio 0.05, --max-megabytes 15
  render         draw a checkpoint or PLY: test views, an orbit or a camera path, to PNG and video
  view           look at a checkpoint or PLY in the browser, at any share of its Gaussians
evaluation
  benchmark      train and measure every scene of a benchmark, and report it beside the paper
  compare        rival methods from one first stage: prune, fine-tune, iterative, matryoshka, flexgs
  ablate         the same with one thing changed at a time, as in the paper's Table 3
  unseen         an elastic model at ratios that it was not trained for, and where quality dips
captures
  data download  fetch a benchmark's scenes
  demo           make a small capture, train on it, and show the result
"""


COMMANDS: dict[str, Callable[..., Any] | dict[str, Any]] = {
    "export": export,
    "render": render,
    "view": view,
    "data": {"download": download},
    "demo": demo,
    "benchmark": benchmark,
    "compare": compare,
    "ablate": ablate,
    "unseen": unseen,
}
POSITIONAL = ("benchmark",)
"""Commands whose required arguments are given by place."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status.

    Bad input (``InputError``) ends with one message on standard error and status 1.
    """
    arguments = sys.argv[1:] if argv is None else argv
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    _silence_known_noise()
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(HELP)
        return 0 if arguments else 2
    try:
        return _run(arguments[0], arguments[1:])
    except InputError as error:
        sys.stderr.write(f"flexgs: error: {error}\n")
        return 1


def _run(command: str, arguments: list[str]) -> int:
    if command in FlexGSCLI.subcommands():
        FlexGSCLI([command, *arguments])
    elif command in COMMANDS:
        chosen = COMMANDS[command]
        arguments = _joined([_underscored(argument) for argument in arguments], chosen)
        if callable(chosen):
            _call(command, chosen, arguments)
        else:
            auto_cli(chosen, args=arguments, prog=f"flexgs {command}", as_positional=True)
    else:
        sys.stderr.write(f"flexgs: error: unknown command '{command}'.\n\n{HELP}")
        return 2
    return 0


def _call(name: str, function: Callable[..., Any], arguments: list[str]) -> None:
    """Parse and call; ``auto_cli`` would keep what is given for a parameter named config to itself."""
    parser = ArgumentParser(prog=f"flexgs {name}", description=_description(function))
    parser.add_function_arguments(function, as_group=False, as_positional=name in POSITIONAL)
    function(**parser.parse_args(arguments))


def _underscored(argument: str) -> str:
    """Options may be written with hyphens, too: --max-gaussians is --max_gaussians."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _description(function: Callable[..., Any]) -> str:
    """What a command's docstring says before its arguments, for its help."""
    return (inspect.getdoc(function) or "").partition("\n\nArgs:")[0]


def _joined(arguments: list[str], command: Any) -> list[str]:
    """Lists may be written with spaces: --ratios 0.01 0.05 is --ratios=[0.01,0.05]."""
    if not callable(command):
        return arguments
    parameters = inspect.signature(command).parameters.items()
    lists = {f"--{name}" for name, parameter in parameters if "list[" in str(parameter.annotation)}
    joined: list[str] = []
    for argument in arguments:
        name, _, values = joined[-1].partition("=") if joined else ("", "", "")
        if name not in lists or argument.startswith("--"):
            joined.append(argument)
        else:
            joined[-1] = f"{name}=[{', '.join([*filter(None, [values[1:-1]]), argument])}]"
    return joined


def _silence_known_noise() -> None:
    """Drop warnings that tell a user nothing that they could act on."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", "Queued a .* on a closed connection")  # viser, of a tab just closed
    warnings.filterwarnings("ignore", ".*treespec.*is deprecated.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
