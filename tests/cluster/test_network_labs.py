"""Training between hosts, each with its own address, while Dask's traffic is encrypted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client, Security

import labkit as lk
from labkit.cluster.certificates import security_in, write_certificates
from labkit.errors import ConnectError
from tests.engines.experiments import difference, result
from tests.network import Hosts, needs_hosts

pytestmark = [pytest.mark.slow, pytest.mark.paired]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    needs_hosts()
    with Hosts(2) as hosts:
        yield hosts


@pytest.fixture
def security(tmp_path: Path) -> Security:
    """Certificates in files, as whoever runs a cluster hands them out."""
    return security_in(write_certificates(tmp_path / "cluster"))


def options(security: Security) -> list[str]:
    return [
        "--tls-ca-file",
        security.tls_ca_file,
        "--tls-cert",
        security.tls_worker_cert,
        "--tls-key",
        security.tls_worker_key,
    ]


def start(hosts: Hosts, scheme: str, extra: list[str]) -> tuple[str, list[subprocess.Popen[bytes]]]:
    """A scheduler on the first host and a worker on each, as their owner starts them; the scheduler's address."""
    address = f"{scheme}://{hosts.addresses[0]}:8786"
    dask, quiet = [sys.executable, "-m", "dask"], {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    place = ["--protocol", scheme, *extra]
    programs = [
        hosts.run(
            0,
            [*dask, "scheduler", "--host", hosts.addresses[0], "--no-dashboard", *place],
            **quiet,
        )
    ]
    for host, own in enumerate(hosts.addresses):
        command = [*dask, "worker", address, "--host", own, "--nthreads", "1", "--no-dashboard", *place]
        programs.append(hosts.run(host, command, **quiet))
    return address, programs


def wait_for(address: str, security: Security | None) -> None:
    with Client(address, security=security, timeout=60, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)


def test_two_hosts_train_over_tls_as_one_process_does(hosts: Hosts, security: Security) -> None:
    address, programs = start(hosts, "tls", options(security))
    try:
        wait_for(address, security)
        with lk.connect(address, security=security) as lab:
            assert {worker.address.split(":")[1].strip("/") for worker in lab.workers} == set(hosts.addresses)
            assert all(worker.address.startswith("tls://") for worker in lab.workers)
            for algorithm in (lk.algorithms.AllReduce(), lk.algorithms.LocalSGD(2)):
                assert difference(result(lab, algorithm), result(lk.Lockstep(), algorithm)) < 1e-5
            report = lk.doctor(lab)
            told = {check.name: check for check in report.checks}
            assert report.ok and told["encryption"].found.startswith("tls://")
            assert all(host in told["addresses"].found for host in hosts.addresses)
        with pytest.raises(ConnectError, match="needs the cluster's certificates"):
            lk.connect(address)
        with pytest.raises(ConnectError, match="does not fit the certificates"):
            lk.connect(address, security=True)
    finally:
        for program in programs:
            program.kill()
