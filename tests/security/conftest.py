"""The floor of the suite: each class of bugs that systems like this one had is attacked by a test of its number, against a running
server.

A class counts when a test named test_adv_NN_... of it passed and none failed. It is counted where the whole directory runs.
"""

import re
from pathlib import Path

import pytest
from clients import new_bucket
from people import Owner

CLASSES = range(1, 43)

attacked: dict[int, list[str]] = {}


def class_of(nodeid: str) -> int | None:
    found = re.search(r"::test_adv_(\d\d)_", nodeid)
    return int(found.group(1)) if found else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session, items):
    """Before any is deselected: whether this is the whole suite."""
    here = Path(__file__).parent
    collected = {item.path for item in items if here in item.path.parents}
    session.config.whole_suite = collected == set(here.glob("test_*.py"))


def pytest_runtest_logreport(report):
    number = class_of(report.nodeid)
    if number and (report.when == "call" or report.outcome != "passed"):
        attacked.setdefault(number, []).append(report.outcome)


def gaps() -> list[str]:
    covered = {number for number, outcomes in attacked.items() if set(outcomes) == {"passed"}}
    return [f"class {number:02} is covered by no test that passed" for number in CLASSES if number not in covered]


def selected(config) -> bool:
    return bool(config.option.keyword or config.option.markexpr or config.option.maxfail)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    whole = getattr(session.config, "whole_suite", False) and not selected(session.config)
    if whole and not session.config.option.collectonly and gaps() and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    if not getattr(config, "whole_suite", False) or selected(config) or config.option.collectonly:
        return
    terminalreporter.section("classes of bugs")
    for gap in gaps():
        terminalreporter.line(f"BELOW THE FLOOR: {gap}", red=True)
    if not gaps():
        terminalreporter.line(f"all {len(CLASSES)} are attacked, and none got in")


@pytest.fixture
def stored(cluster, s3, bucket):
    """The path of an object that every attack must leave as it is."""
    s3.put_object(Bucket=bucket, Key="k", Body=b"kept")
    yield f"/{bucket}/k"
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"kept"


@pytest.fixture
def empty(cluster, s3):
    """A bucket that must still be empty afterwards."""
    name = new_bucket(s3)
    yield name
    assert "Contents" not in s3.list_objects_v2(Bucket=name)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=name)


@pytest.fixture
def owners(cluster):
    """Two people who share nothing."""
    return Owner(cluster), Owner(cluster)
