"""Main: what the Makefile asks of Python: `python -m labkit lab, doctor`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START = ROOT / "notebooks" / "00_start_here.ipynb"


def lab(args: argparse.Namespace) -> int:
    """Serve JupyterLab on the loopback interface, with its token, open on one notebook."""
    from jupyterlab.labapp import main as serve

    notebook = args.notebook.resolve()
    options = [
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.allow_root=True",  # containers run as root; only this machine reaches the server
        f"--ServerApp.root_dir={notebook.parent}",
        f"--LabApp.default_url=/lab/tree/{notebook.name}",
        "--LabApp.news_url=",  # a lesson fetches nothing
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    if args.port is not None:  # whoever names a port wants that one, not the next that is free
        options += [f"--ServerApp.port={args.port}", "--ServerApp.port_retries=0"]
    if args.browser == "none":
        options.append("--ServerApp.open_browser=False")
    elif args.browser != "default":
        options.append(f"--ServerApp.browser={args.browser}")
    serve(argv=options)
    return 0


def doctor(_: argparse.Namespace) -> int:
    """Print what this machine is and what it lacks."""
    from labkit.cluster.doctor import doctor as examine

    report = examine()
    print(report)
    return 0 if report.ok else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    top = argparse.ArgumentParser(prog="python -m labkit", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("lab", help="serve JupyterLab on this machine")
    command.add_argument("notebook", nargs="?", type=Path, default=START)
    command.add_argument("--port", type=int, help="this port or none; 0 for any (default: 8888 or the next free)")
    command.add_argument("--browser", default="default", help="a browser's name, or none (default: the system's)")
    command.set_defaults(run=lab)
    command = commands.add_parser("doctor", help="say what this machine is and what it lacks")
    command.set_defaults(run=doctor)
    args = top.parse_args(argv)
    status: int = args.run(args)
    return status


if __name__ == "__main__":
    sys.exit(main())
