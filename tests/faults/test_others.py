"""Others at fault: a second process in the folder, an endpoint and a Hub that break. (A dead rank: tests/training.)"""

from __future__ import annotations

import pytest

from tests.corpus.test_llm import Fake
from tests.faults.conftest import check_told
from tests.faults.injection import Operations
from tests.faults.jobs import leftovers, result, same

NAMES = ["distill", "grow", "train-head", "evaluate"]


def check_second(world, name: str) -> None:
    """The second of two processes is told so and changes nothing, the first one ends as if alone."""
    world.undisturbed(name)
    count = world.operations(name)
    told = world.place / "second"

    def start_another(at: int, *_) -> None:
        if at == count // 2:
            done = world.run(name, again=True)
            told.write_text(f"{done.code}\n{done.err}")

    told.unlink(missing_ok=True)
    world.clean()
    first = world.run(name, lambda: Operations(world.root, start_another).install())
    assert first.code == 0, first.err
    code, _, lines = told.read_text().partition("\n")
    assert int(code) == 2 and lines.count("\n") == 1 and "is in use by process" in lines, lines
    assert not leftovers(world.root) and same(result(world.out), world.undisturbed(name)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_second_process_in_the_folder(world, name):
    check_second(world, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [(500, "broken", {}), (200, "{", {}), (200, "", {}), (404, "none", {})], ids=str
)
def test_an_endpoint_that_breaks(world, monkeypatch, fault):
    """One line, and after it the prompts and pictures of an endpoint that never broke."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fake = Fake()
    try:
        llm = (f"corpus.llm.base_url={fake.url}", "corpus.llm.model=fake", "corpus.num_prompts=3")

        def quick() -> None:
            from l2p.corpus import llm as client

            client.time.sleep = lambda seconds: None

        world.clean()
        straight = world.run("distill", quick, more=llm)
        assert straight.code == 0, straight.err
        wanted = result(world.out)
        world.clean()
        fake.faults += [fault] * 50
        check_told(world.run("distill", quick, more=llm), f"endpoint {fault}")
        assert not leftovers(world.root)
        fake.faults.clear()
        assert world.run("distill", quick, more=llm).code == 0
        assert same(result(world.out), wanted)
    finally:
        fake.shutdown()
        fake.server_close()
