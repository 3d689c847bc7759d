"""Main: what people and the Makefile ask of Python: `python -m labkit lab, doctor, book, certificates, …`."""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
IN_WHEEL = PACKAGE / "notebooks"  # where a wheel has the lessons; a clone has them beside the package
LESSONS = IN_WHEEL if IN_WHEEL.is_dir() else PACKAGE.parent / "notebooks"
START = LESSONS / "00_start_here.ipynb"
OWN = Path("labkit-lessons")  # in the current folder: what is installed is nobody's to write into


def lab(args: argparse.Namespace) -> int:
    """Serve JupyterLab on the loopback interface, with its token, open on one notebook."""
    from jupyterlab.labapp import main as serve

    notebook = own_copy(args.notebook).resolve()
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


def own_copy(notebook: Path) -> Path:
    """A lesson of the wheel in a copy of the lessons that the learner may change; any other notebook as it is."""
    if not notebook.is_relative_to(IN_WHEEL):
        return notebook
    if not OWN.exists():
        shutil.copytree(IN_WHEEL, OWN)
        print(f"The lessons are in {OWN.resolve()}: yours to change, and not replaced by newer ones.")
    return OWN / notebook.relative_to(IN_WHEEL)


def doctor(args: argparse.Namespace) -> int:
    """Print what this machine is and what it lacks; 1 where something must be mended first."""
    from labkit.cluster.doctor import doctor as examine

    report = examine(end_stale=args.end_stale)
    print(report)
    return 0 if report.ok else 1


def certificates(args: argparse.Namespace) -> int:
    """Write certificate and key for a cluster of several machines."""
    from labkit.cluster.certificates import write_certificates

    print(
        f"{write_certificates(args.to)} has cert.pem and key.pem: copy it to each machine of your cluster, only there."
    )
    return 0


def release(args: argparse.Namespace) -> int:
    """Write the learner's copy of the lessons into a folder."""
    from labkit.release import release as write

    copies = write(args.lessons, args.to)
    print(f"{len(copies)} lessons for learners in {args.to}")
    return 0


def book(args: argparse.Namespace) -> int:
    """Write the lessons as a site of static pages into a folder."""
    from labkit.book import book as write

    pages = write(args.lessons, args.to)
    print(f"{len(pages)} lessons as pages: open {args.to / 'index.html'}")
    return 0


def slides(args: argparse.Namespace) -> int:
    """Write the lessons as slides into a folder."""
    from labkit.slides import slides as write

    pages = write(args.lessons, args.to)
    print(f"{len(pages)} lessons as slides: open {pages[0]}")
    return 0


def grade(args: argparse.Namespace) -> int:
    """Grade what was submitted, each exercise in processes of its own."""
    from labkit.classroom.grading import grade as graded
    from labkit.classroom.isolation import missing
    from labkit.errors import SettingError

    if args.to and not args.to.resolve().parent.is_dir():
        raise SettingError(f"--to: there is no folder {args.to.resolve().parent}; make it first, or give another file.")
    grades = graded(args.submitted, args.source, seed=args.seed, jobs=args.jobs)
    print(grades)
    if args.to:
        grades.write(args.to)
    if open_to := missing():
        print(f"Mind: {open_to}", file=sys.stderr)
    return 0


def classroom(args: argparse.Namespace) -> int:
    """Write a hub's configuration, publish the lessons, or examine the machine as a student."""
    from labkit.classroom.configuration import publish, write
    from labkit.classroom.examination import examine, require_runuser

    if args.what == "check":
        if args.user:
            require_runuser()
            command = [sys.executable, "-m", "labkit", "classroom", "check", "--students", str(args.students)]
            return subprocess.run(["runuser", "-l", args.user, "-c", shlex.join(command)], check=False).returncode
        report = examine(args.students)
        print(report)
        return 0 if report.ok else 1
    if args.what == "init":
        for path in write(args.to, args.authenticator, args.spawner, args.gateway):
            print(path)
    print(f"{publish(args.lessons, args.to)} lessons for learners in {args.to / 'course'}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status, 1 where labkit refuses in a sentence."""
    top = argparse.ArgumentParser(prog="python -m labkit", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("lab", help="serve JupyterLab on this machine")
    command.add_argument("notebook", nargs="?", type=Path, default=START)
    command.add_argument("--port", type=int, help="this port or none; 0 for any (default: 8888 or the next free)")
    command.add_argument("--browser", default="default", help="a browser's name, or none (default: the system's)")
    command.set_defaults(run=lab)
    command = commands.add_parser("doctor", help="say what this machine is and what it lacks; 1 if it must be mended")
    command.add_argument("--end-stale", action="store_true", help="end schedulers and workers whose kernel is gone")
    command.set_defaults(run=doctor)
    for write, does in {certificates: "make certificate and key for a cluster of several machines",
                        release: "write the learner's copy of the lessons: no solutions, no results",
                        book: "write the lessons as static pages, to be read and printed",
                        slides: "write the lessons as slides, which need no network"}.items():  # fmt: skip
        command = commands.add_parser(write.__name__, help=does)
        command.add_argument("to", type=Path, metavar="DIR", help="the folder for it; nothing else there is replaced")
        if write is not certificates:
            command.add_argument("--lessons", type=Path, default=START.parent, help="their folder (default: ours)")
        command.set_defaults(run=write)
    command = commands.add_parser("grade", help="grade submissions, each exercise in processes of its own")
    command.add_argument("submitted", type=Path, help="the folder with one folder for each student")
    command.add_argument("--source", type=Path, default=START.parent, help="the teacher's lessons (default: ours)")
    command.add_argument("--to", type=Path, metavar="CSV", help="a table with points and sentences")
    command.add_argument("--seed", type=int, help="of the fresh cases (default: another each time, the same for all)")
    command.add_argument("--jobs", type=int, help="exercises graded at a time (default: one for each core)")
    command.set_defaults(run=grade)
    command = commands.add_parser("classroom", help="a hub for a class: its configuration, the lessons, the machine")
    whats = command.add_subparsers(required=True, dest="what", metavar="what")
    for what, does in {"init": "write a hub's configuration and publish the lessons; it starts nothing",
                       "release": "publish the lessons again: no solutions, no results"}.items():  # fmt: skip
        each = whats.add_parser(what, help=does)
        each.add_argument("to", type=Path, metavar="DIR")
        each.add_argument("--lessons", type=Path, default=START.parent, help="their folder (default: ours)")
        if what == "init":
            each.add_argument("--authenticator", default="pam", help="who comes in (default: pam; dummy to try it)")
            each.add_argument("--spawner", default="systemd", help="what starts servers (default: systemd; or simple)")
            each.add_argument("--gateway", action="store_true", help="with a Dask Gateway: a cluster for each notebook")
    each = whats.add_parser("check", help="examine this machine as the student who runs it, or as --user")
    each.add_argument("--students", type=int, default=30, help="how many there will be (default: 30)")
    each.add_argument("--user", help="a student's account, tried by root")
    command.set_defaults(run=classroom)
    args = top.parse_args(argv)
    from labkit.errors import LabkitError

    try:
        return int(args.run(args))
    except LabkitError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
