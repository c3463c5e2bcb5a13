"""The command line: ``flexgs``, also installed as ``lightning`` for those who type ``lightning fit``."""

import functools
import inspect
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from flexgs_lightning.errors import InputError, printable
from flexgs_lightning.files import place_of
from flexgs_lightning.settings import OneLineErrors, element_of, with_lists
from flexgs_lightning.signals import Stopped, close_progress_bars, heeded

HELP = """\
usage: flexgs COMMAND [options]        (flexgs COMMAND --help lists them)

training
  fit            train a scene:  flexgs fit --config mipnerf360 --data.root data/mipnerf360/garden
  validate       measure a checkpoint on the held-out views
  test           the same, and write metrics.json into the run folder
deployment
  export         write a checkpoint as PLY, SPZ, SOG, …, at any size: --ratio 0.05, --max-megabytes 15
  convert        write a splat file in another format:  flexgs convert scene.ply scene.spz
  render         draw a checkpoint or splat file: test views, an orbit or a camera path, to PNG and video
  compress       write a checkpoint or PLY as one small elastic file (.egs) with every size in it
  decompress     write an elastic file, or a part of it, as a PLY
  info           what an elastic file holds, and where it can be cut
  view           look at a checkpoint or splat file in the browser, at any share of its Gaussians
  publish        a folder for any web server: the scene at every size, and a player for browsers
  serve          look at such a folder on this machine
  profile        milliseconds a frame against the number of Gaussians, for --max-milliseconds
evaluation
  benchmark      train and measure every scene of a benchmark, and report it beside the paper
  compare        rival methods from one first stage: prune, fine-tune, iterative, matryoshka, flexgs
  ablate         the same with one thing changed at a time, as in the paper's Table 3
  represent      what a scene that moves can be made of, side by side: quality, small sizes, bytes
  unseen         an elastic model at ratios that it was not trained for, and where quality dips
  rd             bytes against quality: the elastic file beside other formats and codecs
captures
  data process   photos or a video to a capture: cameras, points, undistorted photos
  data download  fetch a benchmark's scenes
  demo           make a small capture, train on it, and show the result
"""


TRAINING = ("fit", "validate", "test")
"""Commands of Lightning's command line."""
COMMANDS = {
    "export": "deploy.export",
    "convert": "deploy.convert",
    "render": "deploy.render_command",
    "compress": "deploy.compress",
    "decompress": "deploy.decompress",
    "info": "deploy.info",
    "view": "deploy.viewer.command",
    "publish": "deploy.web.publish",
    "serve": "deploy.web.serve",
    "profile": "deploy.profile",
    "data download": "data.download",
    "data process": "data.process",
    "demo": "demo.command",
    "benchmark": "evaluation.benchmark.command",
    "compare": "evaluation.comparison.command",
    "ablate": "evaluation.comparison.command",
    "represent": "evaluation.representations.command",
    "unseen": "evaluation.unseen",
    "rd": "evaluation.rate_distortion.command",
}
"""The other commands, and the module that holds the function of each; imported when it runs, for speed."""
KEYWORDS = {"for": "for_viewer"}
"""Options whose name no parameter of Python can have, and the parameter that stands for each."""
POSITIONAL = ("benchmark", "convert", "data download", "data process", "decompress", "info", "serve")
"""Commands whose required arguments are given by place."""


PIPE_CLOSED = 141
"""Exit status when standard output is closed: that of SIGPIPE, as shells have it."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status.

    Bad input (``InputError``) and a system that refuses (a full disk, no permission) end with one message on
    standard error and status 1; SIGINT and SIGTERM with one line and status 130 or 143.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        with heeded(last=argv is None):
            status = _run(arguments)
            sys.stdout.flush()
            return status
    except Stopped as stopped:
        if not stopped.told:
            _say(str(stopped))
        return 128 + stopped.number
    except InputError as error:
        _say(f"error: {error}")
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        where = place_of(error)
        _say(f"error: {f'{where}: ' if where else ''}{error.strerror or error}.")
    return 1


def _say(message: str) -> None:
    """One line on standard error, below the progress bars that have come to nothing."""
    close_progress_bars()
    sys.stderr.write(f"flexgs: {printable(message)}\n")


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(HELP)
        return 0 if arguments else 2
    command = _command(arguments)
    if command is None:
        sys.stderr.write(f"flexgs: error: unknown command '{arguments[0]}'.\n\n{HELP}")
        return 2
    # After Lightning is imported: it hands its messages to a root logger that it finds, beside its own.
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable())
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    _silence_known_noise()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that is no Unicode shows what it can
            stream.reconfigure(errors="backslashreplace")
    command()
    return 0


def _command(arguments: list[str]) -> Callable[[], object] | None:
    """What is asked for, imported and ready to call; None if there is no such command."""
    if arguments[0] in TRAINING:
        from flexgs_lightning.lightning_cli import FlexGSCLI

        return partial(FlexGSCLI, arguments)
    for name, module in COMMANDS.items():
        words = name.split()
        if arguments[: len(words)] == words:
            function = getattr(import_module(f"flexgs_lightning.{module}"), words[-1])
            return partial(_call, name, function, arguments[len(words) :])
    return None


def _call(name: str, function: Callable[..., Any], arguments: list[str]) -> None:
    """Parse and call; jsonargparse's ``auto_cli`` would keep what is given for a parameter named config."""
    from jsonargparse import ArgumentParser

    class Parser(OneLineErrors, ArgumentParser):
        pass

    parser = Parser(prog=f"flexgs {name}", description=_description(function))
    parser.add_function_arguments(function, as_group=False, as_positional=name in POSITIONAL)
    typed = [_underscored(argument) for argument in arguments]
    parameters = inspect.signature(function).parameters.items()
    elements = {f"--{option}": element_of(parameter.annotation) for option, parameter in parameters}
    lists = {option: element for option, element in elements.items() if element is not None}
    function(**parser.parse_args(with_lists(typed, lists)))


def _underscored(argument: str) -> str:
    """Options may be written with hyphens, too: --max-gaussians is --max_gaussians."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    name = name.replace("-", "_")
    return f"--{KEYWORDS.get(name, name)}{equals}{value}"


def _description(function: Callable[..., Any]) -> str:
    """What a command's docstring says before its arguments, for its help."""
    return (inspect.getdoc(function) or "").partition("\n\nArgs:")[0]


class _Printable(logging.Formatter):
    """Messages hold names from files and servers: what would steer a terminal is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def _silence_known_noise() -> None:
    """Drop warnings that tell a user nothing that they could act on."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", "Queued a .* on a closed connection")  # viser, of a tab just closed
    warnings.filterwarnings("ignore", ".*treespec.*is deprecated.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    threading.excepthook = functools.partial(_report_thread, threading.excepthook)
    connector = logging.getLogger("lightning.pytorch.trainer.connectors.signal_connector")
    connector.addFilter(lambda record: "Received SIGTERM" not in record.getMessage())  # we say it ourselves


def _report_thread(otherwise: Callable[[Any], Any], failure: threading.ExceptHookArgs) -> None:
    """TensorBoard's writer thread fails where the disk is full; the main thread raises that again."""
    if not issubclass(failure.exc_type, OSError) or "_AsyncWriter" not in type(failure.thread).__name__:
        otherwise(failure)


if __name__ == "__main__":
    sys.exit(main())
