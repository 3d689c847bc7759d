"""`lk.connect` to clusters that others started: by address, over TLS, or handed over."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

import labkit as lk
from labkit.cluster import deadlines
from labkit.cluster.lab import Lab
from labkit.cluster.local import local_cluster, open_local
from labkit.cluster.remote import _complete
from labkit.cluster.workers import WorkerRequest
from labkit.errors import ConnectError, SettingError


def test_a_lab_whose_workers_do_not_all_come_is_closed_and_says_how_many_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "ARRIVAL", 0.5)
    with local_cluster(1, threads=1, memory=2 << 30) as cluster:
        lab = lk.connect(cluster)
        with pytest.raises(ConnectError, match=r"^1 of 2 workers came within 0\.5 s"):
            _complete(lab, 2)
        assert lab.closed


def test_an_address_gives_a_lab_whose_end_is_not_the_clusters(lab: Lab) -> None:
    address = lab.client.scheduler.address
    lab.client.wait_for_workers(2, timeout=60)  # the test before may have ended one
    with lk.connect(address, security=lab.client.security) as guest:
        assert guest is lk.connect(address)
        assert repr(guest) == "Lab: 2 workers × 1 thread, tls"
        assert guest.map(abs, [-5]).result() == [5]
        with pytest.raises(SettingError, match="not this kernel's to scale"):
            lk.connect(address, workers=3)
        with pytest.raises(SettingError, match="brings its own workers"):
            lk.connect(lab.client, workers=3)
    assert guest.closed
    assert lab.map(abs, [-6]).result() == [6]


def test_a_client_stays_open_and_is_known_again(lab: Lab) -> None:
    with lk.connect(lab.client) as guest:
        assert guest is lk.connect(lab.client)
        assert not guest.owned
    assert lab.client.status == "running"


def test_anything_with_get_client_will_do(lab: Lab) -> None:
    class Classroom:  # such as a GatewayCluster
        def get_client(self) -> object:
            from distributed import Client

            return Client(lab.client.scheduler.address, security=lab.client.security, set_as_default=False)

    classroom = Classroom()
    with lk.connect(classroom) as guest:
        assert guest.map(abs, [-7]).result() == [7]
    assert guest.client.status == "closed"  # labkit asked for that client
    assert not lab.closed


@pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning")
@pytest.mark.parametrize(("package", "found"), [("labkit", "9.9.9"), ("torch", "1.0"), ("python", "3.5.0")])
def test_workers_with_another_version_are_named(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, package: str, found: str
) -> None:
    import distributed.versions

    real = distributed.versions.get_package_info  # of this process: the client's and the scheduler's versions

    def altered(packages: Iterable[str]) -> dict[str, str | None]:
        told = real(packages)
        return told | {package: found} if package in told else told

    monkeypatch.setattr(distributed.versions, "get_package_info", altered)
    sentence = rf"worker tls://\S+ (has|has no) \S+.* while this kernel has {found}: install {package} {found} there"
    with pytest.raises(ConnectError, match=sentence):
        lk.connect(lab.client.scheduler.address, security=lab.client.security)


def test_a_worker_without_labkit_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    real = lab.client.get_versions()
    monkeypatch.setattr(
        "distributed.Client.get_versions",
        lambda self, packages: {
            **{"client": {"packages": {**real["client"]["packages"], "labkit": "0.1", "torch": "2.13.0"}}},
            **{"scheduler": {"packages": {**real["scheduler"]["packages"], "labkit": "0.1"}}},
            **{
                "workers": {
                    at: {"packages": {**it["packages"], "torch": "2.13.0+cpu"}} for at, it in real["workers"].items()
                }
            },
        },
    )
    with pytest.raises(ConnectError, match=r"worker \S+ has no labkit while this kernel has 0\.1: install"):
        lk.connect(lab.client.scheduler.address, security=lab.client.security)


@pytest.fixture(scope="module")
def plain() -> Iterator[Lab]:
    """A lab that encrypts nothing, because somebody said so."""
    with open_local(WorkerRequest.of(1, None, None, security=False, timeout=10)) as lab:
        yield lab


def test_nothing_is_trained_over_an_open_connection_to_another_machine_unless_one_says_so(
    plain: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = plain.client.scheduler.address
    assert address.startswith("tcp://127.0.0.1:")
    with lk.connect(address) as here:  # this machine, whose owner's it is
        assert here.launch(abs, -1, ranks=1).result() == [1]
    monkeypatch.setattr("labkit.cluster.remote._reach", lambda *_: "192.0.2.7")
    with pytest.warns(UserWarning, match=r"not encrypted.*use tls://") as caught:
        elsewhere = lk.connect(address)
    with elsewhere:
        assert elsewhere.map(abs, [-1]).result() == [1]
        with pytest.raises(ConnectError, match=r"encrypts nothing.*tls:// with security=, or .* security=False"):
            elsewhere.launch(abs, -1, ranks=1)
        with pytest.raises(ConnectError, match="encrypts nothing"):
            lk.train(torch.nn.Linear(64, 10), lk.data.load("digits"), rounds=1, on=elsewhere).result()
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]
    with lk.connect(address, security=False) as known:
        assert known.launch(abs, -1, ranks=1).result() == [1]


def test_a_lab_takes_no_one_without_its_certificates(lab: Lab) -> None:
    address = lab.client.scheduler.address
    assert address.startswith("tls://127.0.0.1:")
    assert all(worker.address.startswith("tls://127.0.0.1:") for worker in lab.workers)
    with lk.connect(address, security=lab.client.security) as guest:
        assert guest.map(abs, [-1]).result() == [1]
        assert guest.dashboard == lab.dashboard
    with pytest.raises(ConnectError, match="needs the cluster's certificates"):
        lk.connect(address)
    with pytest.raises(ConnectError, match="does not fit the certificates"):
        lk.connect(address, security=True)
    with pytest.raises(ConnectError, match=r"whether it is tls:// there"):
        lk.connect(address.replace("tls", "tcp"), timeout=1.0)


def test_dashboard_link_follows_the_hub(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUPYTERHUB_SERVICE_PREFIX", raising=False)
    port = lab.client.scheduler_info()["services"]["dashboard"]
    link = re.fullmatch(rf"http://127\.0\.0\.1:{port}/([\w-]{{20,}})/status", str(lab.dashboard))
    assert link is not None
    assert lab.client.dashboard_link == lab.dashboard
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ada/")
    assert lab.dashboard == f"/user/ada/proxy/{port}/{link[1]}/status"


def test_the_dashboard_is_its_owners_only(lab: Lab) -> None:
    """Who does not know the secret in its address sees no page, and no page tells him."""
    base, secret, _ = str(lab.dashboard).rsplit("/", 2)
    status, page = _page(str(lab.dashboard))
    assert status == 200
    # behind a proxy the links of a page must be relative to it
    assert not re.findall(r'(?:href|src)="/', page)
    scripts = re.findall(r'src="(static\S+)"', page)
    assert scripts and _page(f"{base}/{secret}/{scripts[0]}")[0] == 200
    paths = ("/", "/status", "/sitemap.json", "/info/main/workers.html", "/info/main/logs.html", "/metrics", "/json/")
    for path in (*paths, f"/{secret[:-1]}x/status", f"/x/{secret}/status", f"//{secret}/status"):
        status, page = _page(base + path)
        assert (status, secret in page) == (404, False), path
    for worker in lab.known().values():  # their own pages show nothing to anybody
        served = f"http://127.0.0.1:{worker['services']['dashboard']}"
        assert _page(f"{served}/sitemap.json")[1] == '{"paths": ["/sitemap.json"]}'


def _page(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
