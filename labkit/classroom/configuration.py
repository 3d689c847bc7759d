"""Configuration: files of one screen each for a hub of one's own, which a teacher reads, changes and starts."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import tempfile
from base64 import b64encode
from pathlib import Path

from labkit.cluster.memory import STUDENT
from labkit.errors import MissingPackage, SettingError
from labkit.release import release
from labkit.text import amount

HUB = """# The hub of a class, written by `python -m labkit classroom init`. Read it, change it, then start it:
#     jupyterhub -f jupyterhub_config.py
# It listens on this machine alone: put a web server with TLS (Caddy, nginx) before it.
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
c = get_config()  # noqa: F821
c.JupyterHub.bind_url = "http://127.0.0.1:8000"
c.JupyterHub.hub_ip = "127.0.0.1"
c.JupyterHub.db_url = f"sqlite:///{HERE}/hub/jupyterhub.sqlite"  # a folder that only you may look into
c.JupyterHub.cookie_secret_file = str(HERE / "hub" / "jupyterhub_cookie_secret")
c.JupyterHub.cleanup_servers = False  # a hub that starts anew finds students where they were

# Who comes in: "pam" (accounts of this machine), "native", "github" …; "dummy" lets anybody in, to try it.
c.JupyterHub.authenticator_class = "@AUTHENTICATOR@"
@ALLOWED@
c.Authenticator.admin_users = set()  # your own name: whoever is in here governs the hub, and sees who is where

# What starts a student's server. "systemd" (pip install jupyterhub-systemdspawner), Docker and Kubernetes enforce the
# limits below; "simple" and "localprocess" only tell labkit of them, which heeds them.
c.JupyterHub.spawner_class = "@SPAWNER@"
c.Spawner.mem_limit = "2G"  # with two workers a student takes @STUDENT@ after a lesson
c.Spawner.cpu_limit = 2
c.Spawner.start_timeout = c.Spawner.http_timeout = 120  # thirty servers that start at once are slow
c.Spawner.environment = {
    "GOMP_SPINCOUNT": "1000",  # threads that wait hand their core over; else small steps take 10 to 50 times as long
    "LABKIT_BOARD": "http://127.0.0.1:10101/services/board",
}

# Kernels without a word for two hours end. A run under way is a word, seen or not.
c.Spawner.args = ["--MappingKernelManager.cull_idle_timeout=7200", "--MappingKernelManager.cull_interval=300"]

# The lessons, from `python -m labkit classroom release`; what a student has written stays.
if find_spec("nbgitpuller"):
    repository, first = f"file://{HERE}/course", "lab/tree/course/00_start_here.ipynb"
    c.Spawner.default_url = f"/git-pull?repo={repository}&branch=main&urlpath={first}"

# The class board, at /services/board/. Its scope stands in the roles of users (browsers) and of servers (kernels).
c.JupyterHub.services = [
    {
        "name": "board",
        "url": "http://127.0.0.1:10101",
        "command": [sys.executable, "-m", "labkit.classroom.board"],
        "oauth_no_confirm": True,
    }
]
BOARD = "access:services!service=board"
c.JupyterHub.load_roles = [
    {"name": "user", "scopes": ["self", BOARD]},
    {"name": "server", "scopes": ["users:activity!user", "access:servers!server", BOARD]},
]
"""
_ALL = "c.Authenticator.allow_all = True"
_NAMED = '# c.Authenticator.allowed_users = {"ada", "grace"}  # nobody comes in before you name them here'
SERVICE = """
# Dask Gateway, for lk.connect("gateway"): see dask_gateway_config.py. Its scope stands in the same two roles.
GATEWAY, program = "http://127.0.0.1:10102", [sys.executable, "-m", "dask_gateway_server"]
program += ["-f", str(HERE / "dask_gateway_config.py")]
c.JupyterHub.services.append({"name": "gateway", "url": GATEWAY, "command": program})
for role in c.JupyterHub.load_roles:
    role["scopes"].append("access:services!service=gateway")
place, way = f"{GATEWAY}/services/gateway", GATEWAY.replace("http", "gateway")
c.Spawner.environment |= {"DASK_GATEWAY__ADDRESS": place, "DASK_GATEWAY__PROXY_ADDRESS": way}
c.Spawner.environment["DASK_GATEWAY__AUTH__TYPE"] = "jupyterhub"
"""
GATEWAY = """# Dask Gateway for a class, written by `python -m labkit classroom init --gateway`. lk.connect("gateway")
# gives each notebook a cluster of its own. The hub starts this, as a service: see jupyterhub_config.py.
# For several machines put dask-gateway's backend for Kubernetes, Slurm or PBS in place of the local one.
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
c = get_config()  # noqa: F821
c.Proxy.address = "127.0.0.1:10102"  # for requests and, by TLS, for the way to schedulers
c.Proxy.prefix = "/services/gateway"

# Who comes in: users of the hub. Without a hub: "dask_gateway_server.auth.SimpleAuthenticator", with one password for
# all in c.SimpleAuthenticator.password, whose users can call themselves what they like.
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.JupyterHubAuthenticator"
c.JupyterHubAuthenticator.jupyterhub_service_name = "gateway"  # else any token of the hub makes clusters

# "OwnAccounts" runs each student's workers under their account of this machine, for which the hub must be root's;
# "OneAccount" runs all of them under the account of the hub, to try it. Do not put dask-gateway's own LocalBackend
# here: of version 2026.3 it gives the folder / to the first student who asks for a cluster.
c.DaskGateway.backend_class = "labkit.classroom.gateway_backend.@BACKEND@"

# The names that dask-gateway calls by itself, dask-scheduler and dask-worker, are gone from Dask. Dask's pages, which
# show to all users of this machine what goes on, are off.
c.ClusterConfig.scheduler_cmd = [sys.executable, "-m", "dask", "scheduler", "--no-dashboard", "--idle-timeout", "2h"]
c.ClusterConfig.worker_cmd = [sys.executable, "-m", "dask", "worker", "--no-dashboard", "--death-timeout", "60"]
c.ClusterConfig.environment = {
    "DASK_DISTRIBUTED__SCHEDULER__HTTP__ROUTES": "[]",
    "DASK_DISTRIBUTED__WORKER__HTTP__ROUTES": "[]",
    "GOMP_SPINCOUNT": "1000",
}
c.ClusterConfig.worker_cores = 1
c.ClusterConfig.worker_memory = "1 G"
c.ClusterConfig.cluster_max_workers = 4
c.ClusterConfig.idle_timeout = 3600  # seconds; a notebook that was closed without lab.close() leaves its cluster

# A Gateway that starts anew finds the clusters that it had.
c.DBBackendBase.db_url = f"sqlite:///{HERE}/hub/gateway.sqlite"
c.DBBackendBase.db_encrypt_keys = [(HERE / "hub" / "gateway_key").read_text()]
c.DBBackendBase.stop_clusters_on_shutdown = False
c.DBBackendBase.cluster_status_period = c.DBBackendBase.worker_status_period = 2  # until a start that failed is told
"""
NBGRADER = """# nbgrader for the lessons, written by `python -m labkit classroom init`.
# `python -m labkit grade submitted/` grades without it, each exercise by itself.
from pathlib import Path

c = get_config()  # noqa: F821
c.CourseDirectory.root = str(Path(__file__).resolve().parent)
c.CourseDirectory.course_id = "labkit"
c.ClearSolutions.code_stub = {"python": "# Your answer here\\n..."}
# On a machine that thirty students use, nbgrader's own limits leave solved lessons ungraded.
c.ExecutePreprocessor.timeout = 600  # seconds for a cell
c.ExecutePreprocessor.startup_timeout = 180
c.ExecutePreprocessor.interrupt_on_timeout = True
c.ExecutePreprocessor.allow_errors = True  # one exercise that fails leaves the others theirs
"""


def write(folder: Path, authenticator: str = "pam", spawner: str = "systemd", gateway: bool = False) -> list[Path]:
    """Write the configuration into a folder, with or without a Dask Gateway; the files. It starts nothing.

    Raises SettingError where a file is there already, which may have been changed by hand.
    """
    hub = HUB.replace("@AUTHENTICATOR@", authenticator).replace("@SPAWNER@", spawner)
    # an account of this machine is one that you gave somebody; at GitHub anybody has one
    hub = hub.replace("@ALLOWED@", _ALL if authenticator in ("pam", "dummy") else _NAMED)
    hub = hub.replace("@STUDENT@", amount(STUDENT, binary=True))
    files = {folder / "jupyterhub_config.py": hub, folder / "nbgrader_config.py": NBGRADER}
    if gateway:
        # only accounts of this machine have one to run under
        backend = "OwnAccounts" if authenticator == "pam" else "OneAccount"
        files[folder / "jupyterhub_config.py"] += SERVICE
        files[folder / "dask_gateway_config.py"] = GATEWAY.replace("@BACKEND@", backend)
    if there := [path.name for path in files if path.exists()]:
        raise SettingError(f"{folder} has {there[0]} already: choose another folder, or move it.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hub").mkdir(mode=0o700, exist_ok=True)  # sessions, tokens and the key of all cookies
    (folder / "hub").chmod(0o700)
    for path, text in files.items():
        path.write_text(text)
    if gateway:
        key = folder / "hub" / "gateway_key"
        key.touch(0o600)
        key.write_text(b64encode(secrets.token_bytes(32)).decode())
    return list(files)


def publish(lessons: Path, folder: Path) -> int:
    """Put the learner's copy of the lessons into the repository `folder`/course, which students pull from; how many.

    Raises MissingPackage without git, and SettingError where there are no lessons.
    """
    git = shutil.which("git")
    if git is None:
        raise MissingPackage("Students pull the lessons from a git repository: install git.")
    course = folder / "course"
    with tempfile.TemporaryDirectory() as fresh:
        copies = release(lessons, Path(fresh) / "course")
        course.mkdir(parents=True, exist_ok=True)
        for path in copies:
            shutil.copy(path, course / path.name)
    me = ["-c", "user.name=labkit", "-c", "user.email=labkit@localhost"]
    if not (course / ".git").exists():
        subprocess.run([git, "init", "--quiet", "--initial-branch=main", str(course)], check=True)
    subprocess.run([git, "-C", str(course), "add", "--all"], check=True)
    changed = subprocess.run([git, "-C", str(course), "diff", "--cached", "--quiet"], check=False).returncode
    if changed:
        subprocess.run([git, "-C", str(course), *me, "commit", "--quiet", "-m", "Lessons"], check=True)
    return len(copies)
